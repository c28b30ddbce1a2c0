//! The names of GPU kernels: errors, lists of shaders and caches tell kernels apart by them.
#![allow(clippy::unwrap_used)]

use alluvium_ops::OPS;
use std::collections::BTreeMap;
use std::path::Path;

/// The names that a source gives to kernels, as literals.
fn kernel_names(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let after = code.split("kernel(").skip(1).chain(code.split("tiles!(").skip(1));
    let literal =
        |rest: &str| rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next().map(str::to_owned));
    after.filter_map(literal).collect()
}

fn sources(folder: &Path, to: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, to);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            to.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn literal_names_of_kernels_are_found() {
    let text = "static A: Kernel = kernel(\n    \"one\", &[]);\nstatic B: [Kernel; 4] = tiles!(\"two\", []);";
    assert_eq!(kernel_names(text), ["one", "two"]);
}

#[test]
fn no_two_kernels_have_the_same_name() {
    let mut texts = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut texts);
    let mut files: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (path, text) in &texts {
        for name in kernel_names(text) {
            files.entry(name).or_default().push(path);
        }
    }
    assert!(files.len() > 80, "only {} names were found", files.len());
    // rows of the tables of elementwise name their kernels after themselves
    let rows = OPS.iter().filter(|op| {
        texts
            .iter()
            .any(|(path, text)| path.contains("elementwise") && text.contains(&format!("    {}: {{", op.name())))
    });
    for op in rows {
        files.entry(op.name().to_owned()).or_default().push("the table");
    }
    let twice: Vec<_> = files.iter().filter(|(_, files)| files.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}
