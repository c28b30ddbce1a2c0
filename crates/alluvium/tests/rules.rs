//! The rules of the house, for what a test can see.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// Every source file of the crates, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let (mut files, mut folders) = (Vec::new(), vec![root().join("crates")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push((path.clone(), fs::read_to_string(path).unwrap()));
            }
        }
    }
    files.sort();
    assert!(files.len() > 50, "the sources were not found");
    files
}

/// The part of a file that is not its tests.
fn body(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod tests {").map_or(text, |at| &text[..at])
}

/// A module of tests alone, which its parent includes for tests.
fn is_tests(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs" || name == "for_tests.rs")
}

fn is_library(path: &Path) -> bool {
    let path = path.to_string_lossy();
    path.contains("/src/") && !path.contains("/cli/")
}

/// Public signatures, each on one line.
fn signatures(text: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (at, _) in body(text).match_indices("pub fn ") {
        let end = text[at..].find(['{', ';']).map_or(text.len(), |n| at + n);
        all.push(text[at..end].split_whitespace().collect::<Vec<_>>().join(" "));
    }
    all
}

fn complain(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn no_file_is_longer_than_500_lines_without_its_tests() {
    let mut long = Vec::new();
    for (path, text) in sources() {
        let lines = body(&text).lines().count();
        if lines > 500 {
            long.push(format!("{}: {lines} lines", path.display()));
        }
    }
    complain(&long);
}

#[test]
fn public_signatures_take_no_bool() {
    let mut faults = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| is_library(path)) {
        let takes = |s: &&String| s.split("->").next().unwrap().contains(": bool");
        faults.extend(signatures(text).iter().filter(takes).map(|s| format!("{}: {s}", path.display())));
    }
    complain(&faults);
}

#[test]
fn public_names_hold_no_dtype_backend_version_or_boast() {
    let banned = ["f32", "f16", "bf16", "wgpu", "cuda", "v1", "v2", "fused", "fast", "new2"];
    let mut faults = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| path.to_string_lossy().contains("/ops/src/")) {
        for signature in signatures(text) {
            let name = signature["pub fn ".len()..].split(['(', '<']).next().unwrap_or("").to_owned();
            if name.split('_').any(|word| banned.contains(&word)) {
                faults.push(format!("{}: {name}", path.display()));
            }
        }
    }
    complain(&faults);
}

#[test]
fn libraries_read_no_environment_and_comments_tell_no_stories() {
    let date = |line: &str| {
        line.as_bytes()
            .windows(8)
            .any(|w| w.starts_with(b"20") && w[4] == b'-' && w[7] == b'-' && w[2..4].iter().all(u8::is_ascii_digit))
    };
    let marks = ["TO", "FIX", "XX", "HA"].into_iter().zip(["DO:", "ME", "X:", "CK:"]);
    let marks: Vec<String> = marks.map(|(a, b)| format!("{a}{b}")).collect();
    let mut faults = Vec::new();
    for (path, text) in sources() {
        for (number, line) in body(&text).lines().enumerate() {
            let comment = line.trim_start().starts_with("//");
            let story = comment && (date(line) || marks.iter().any(|m| line.contains(m)));
            let environment = is_library(&path) && !is_tests(&path) && line.contains("env::var");
            if story || environment {
                faults.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    complain(&faults);
}

#[test]
fn an_operation_is_a_folder_with_its_definition_or_a_row_of_a_table_and_one_line_in_the_list() {
    let folder = root().join("crates/ops/src");
    let tables = ["elementwise", "reduce"];
    let families = ["delta", "experts", "linalg", "quantized"];
    let shared = ["check", "common", "chunk", "cpu", "gpu"];
    let subfolders = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect::<Vec<_>>()
    };
    let mut faults = Vec::new();
    let mut folders = Vec::new();
    let in_families = families.iter().flat_map(|family| subfolders(&folder.join(family)));
    for path in subfolders(&folder).into_iter().chain(in_families) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if shared.iter().chain(&tables).chain(&families).any(|other| *other == name) {
            continue;
        }
        // an operation whose kernels are those of others has no cpu.rs or gpu.rs
        for file in ["mod.rs", "reference.rs", "entry.rs"] {
            if !path.join(file).exists() {
                faults.push(format!("{name} has no {file}"));
            }
        }
        if alluvium::ops::find(&name).is_none() {
            faults.push(format!("{name} is not in the list"));
        }
        folders.push(name);
    }
    let in_tables = |path: &Path| tables.iter().any(|table| path.starts_with(folder.join(table)));
    let text: String = sources().into_iter().filter(|(path, _)| in_tables(path)).map(|(_, text)| text).collect();
    for op in alluvium::ops::OPS.iter().filter(|op| !folders.iter().any(|folder| folder == op.name())) {
        let name = op.name();
        if !text.contains(&format!("    {name}: {{")) && !text.contains(&format!("pub fn {name}(")) {
            faults.push(format!("{name} has neither a folder nor a row in {tables:?}"));
        }
    }
    complain(&faults);
}

#[test]
fn the_generated_page_of_operations_is_what_the_list_says() {
    let page = fs::read_to_string(root().join("docs/ops.md")).unwrap();
    assert!(page == alluvium::ops::docs::page(), "stale: run `cargo run --release -- ops --markdown > docs/ops.md`");
}

/// Phrases that have a plain word or a term of the field.
const RETIRED: [(&str, &str); 12] = [
    ("so many ", "this many, at most n"),
    ("whoever", "the caller, the thread"),
    ("is no number", "NaN"),
    ("be no number", "NaN"),
    ("whole number", "integer"),
    ("the processor", "the CPU"),
    ("brought near", "prefetched"),
    ("past the caches", "non-temporal stores"),
    ("comes of ", "results from"),
    ("is told ", "gets"),
    ("the dial", "the preset"),
    ("quantis", "quantiz"),
];

#[test]
fn retired_phrases_stand_in_no_source_and_no_page() {
    let mut faults = Vec::new();
    let mut folders = vec![root().join("crates"), root().join("docs")];
    let mut files =
        ["README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG"].map(|n| root().join(n.to_owned() + ".md")).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let is_text =
                path.extension().is_some_and(|e| ["rs", "wgsl", "md", "toml"].iter().any(|known| e == *known));
            if path.is_dir() {
                folders.push(path);
            } else if is_text && !path.ends_with("tests/rules.rs") {
                files.push(path);
            }
        }
    }
    assert!(files.len() > 100, "the sources were not found");
    for path in files {
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            for (phrase, instead) in RETIRED {
                if line.to_lowercase().contains(phrase) {
                    faults.push(format!("{}:{}: `{phrase}`: {instead}", path.display(), number + 1));
                }
            }
        }
    }
    complain(&faults);
}
