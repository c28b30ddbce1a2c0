//! The folder of a run: its files, and which folders a new run may use.

use crate::{metrics, state};
use alluvium_core::{Error, Result};
use alluvium_lm::adapter::ADAPTER_CONFIG;
use alluvium_lm::formats::atomic::remove_abandoned;
use std::path::Path;

/// The drawing of the loss curve.
pub(crate) const CURVE: &str = "loss.svg";
/// The settings of the run, as `--config` takes them.
pub(crate) const SETTINGS: &str = "config.toml";
/// A summary of the run for people.
pub const REPORT: &str = "report.md";

/// Files of a tokenizer: a run that was killed before its first checkpoint may have left them.
const TOKENIZER: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];

/// Makes the folder of a new run.
///
/// # Errors
/// As [`check`]; nothing is changed then.
pub(crate) fn claim(out: &Path) -> Result<()> {
    check(out)?;
    clear(out);
    std::fs::create_dir_all(out).map_err(Error::io(out, "create"))
}

/// Removes the half-written files of a run that was killed.
pub(crate) fn clear(out: &Path) {
    let others = [metrics::FILE, CURVE, SETTINGS, REPORT, "config.json", ADAPTER_CONFIG];
    remove_abandoned(out, &|name| is_weights(name) || TOKENIZER.contains(&name) || others.contains(&name));
}

/// Checks that a new run can use a folder, which need not exist.
///
/// # Errors
/// When the folder holds a run, a model, or any file that the run would overwrite.
pub(crate) fn check(out: &Path) -> Result<()> {
    let refuse = |name: &str| {
        let why = format!("it already holds {name}; --resume continues a run, or choose another folder");
        Err(Error::file(out, why))
    };
    if out.join(state::FILE).exists() {
        return refuse(state::FILE);
    }
    // entries in the order of names, so that the same folder gives the same error
    let mut names = Vec::new();
    match std::fs::read_dir(out) {
        Ok(entries) => {
            for entry in entries {
                names.push(entry.map_err(Error::io(out, "read"))?.file_name().to_string_lossy().into_owned());
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(out, "create")(error)),
    }
    names.sort();
    if let Some(name) = names.iter().find(|name| is_weights(name) || *name == "config.json") {
        return refuse(name);
    }
    // without a state, the metrics of a run are those of one that was killed before its first checkpoint
    let was_begun = metrics::check_ours(&out.join(metrics::FILE))?;
    let overwritten =
        |name: &String| TOKENIZER.contains(&name.as_str()) || [CURVE, SETTINGS, REPORT].contains(&name.as_str());
    match names.iter().find(|name| overwritten(name)) {
        Some(name) if !was_begun => refuse(name),
        _ => Ok(()),
    }
}

/// Whether a file of this name holds the weights of a model or of an adapter.
fn is_weights(name: &str) -> bool {
    let formats =
        [".safetensors", ".safetensors.index.json", ".gguf", ".bin", ".bin.index.json", ".pt", ".pth", ".npz"];
    formats.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_folder_with_files_that_a_run_would_overwrite_is_refused_and_left_as_it_is() {
        for name in [
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "adapters.safetensors",
            "trainer.safetensors",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "generation_config.json",
            "loss.svg",
            "config.toml",
            "report.md",
            "model-Q4_0.gguf",
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(name), "mine").unwrap();
            let error = claim(folder.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("it already holds {name}")), "{error}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
            assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), "mine");
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(metrics::FILE), "{\"loss\":3}\n").unwrap();
        assert!(claim(folder.path()).unwrap_err().to_string().contains("not written by a training run"));
    }

    #[test]
    fn a_folder_of_other_files_and_one_of_a_run_without_a_checkpoint_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("notes.txt"), "mine").unwrap();
        claim(folder.path()).unwrap();
        drop(metrics::Metrics::open(&folder.path().join(metrics::FILE), 0).unwrap());
        fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
        claim(folder.path()).unwrap();
        claim(&folder.path().join("new/run")).unwrap();
    }
}
