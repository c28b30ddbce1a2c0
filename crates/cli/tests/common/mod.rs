//! A folder with text and a tiny model's settings, and the program run in it.

#![allow(dead_code, clippy::unwrap_used, clippy::panic)]

use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The smallest model that has every part: a run of it takes milliseconds a step.
const TINY: &str = r#"
hidden_size = 32
intermediate_size = 64
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
linear_num_key_heads = 1
linear_num_value_heads = 2
linear_key_head_dim = 16
linear_value_head_dim = 16
vocab_size = 300
batch_size = 2
max_seq_length = 32
"#;

pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// With `text`, some 40 KiB of it in two files, and `tiny.toml`.
    pub(crate) fn new() -> Self {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(place.path("text")).unwrap();
        fs::write(place.path("text/a.txt"), prose(1, 3000)).unwrap();
        fs::write(place.path("text/b.txt"), prose(2, 3000)).unwrap();
        fs::write(place.path("tiny.toml"), TINY).unwrap();
        place
    }

    /// With the model of a finished run in `run`.
    pub(crate) fn trained() -> Self {
        let place = Place::new();
        said(&mut place.train("run", &["--iters", "6", "--steps-per-report", "2"]));
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn alluvium(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_alluvium"));
        command.current_dir(self.folder.path()).args(args).stdin(Stdio::null());
        // kernels of tests are not kept among the user's
        command.env("XDG_CACHE_HOME", self.path("cache")).env("XDG_STATE_HOME", self.path("state"));
        // no test asks a server that it has not made
        command.env("HF_HOME", self.path("hub")).env("HF_HUB_OFFLINE", "1");
        for name in ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ENDPOINT", "HF_TOKEN", "NO_COLOR"] {
            command.env_remove(name);
        }
        command
    }

    pub(crate) fn train(&self, out: &str, args: &[&str]) -> Command {
        let mut command = self.settings("train", out);
        command.args(["--data", "text"]).args(args);
        command
    }

    pub(crate) fn resume(&self, out: &str, args: &[&str]) -> Command {
        let mut command = self.settings("train", out);
        command.arg("--resume").args(args);
        command
    }

    fn settings(&self, command: &str, out: &str) -> Command {
        self.alluvium(&[command, "--config", "tiny.toml", "--out", out, "--sample-tokens", "0"])
    }
}

/// The path of a fixture.
pub(crate) fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name).display().to_string()
}

/// A checkpoint in the folder `model` of a place.
pub(crate) fn copied(place: &Place, name: &str) -> PathBuf {
    let model = place.path("model");
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(fixture(name)).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    model
}

/// Words that look like words, the same for the same seed.
pub(crate) fn prose(seed: u64, words: usize) -> String {
    let mut state = seed;
    let mut next = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let mut text = String::new();
    for word in 1..=words {
        for _ in 0..1 + next(4) {
            text.push(b"bdklmnrst"[next(9) as usize] as char);
            text.push(b"aeiou"[next(5) as usize] as char);
        }
        text.push(if word % 11 == 0 { '\n' } else { ' ' });
    }
    text
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The program must succeed; its standard output.
pub(crate) fn said(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {status}\n{}{}", text(&stdout), text(&stderr));
    text(&stdout)
}

/// The program must fail in an orderly way; its error stream.
pub(crate) fn refused(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (text(&stdout), text(&stderr));
    assert!(matches!(status.code(), Some(1 | 2)), "{command:?}: {status}\n{stdout}{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

/// The error must be one sentence that holds these words.
pub(crate) fn refused_with(command: &mut Command, words: &[&str]) {
    let error = refused(command);
    let error = &error[error.find("error: ").unwrap_or_else(|| panic!("no error in {error}"))..];
    assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {error}");
}

/// Ctrl-C.
pub(crate) fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status().unwrap().success());
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What a run leaves and another one must leave as well, bit for bit.
#[derive(PartialEq)]
pub(crate) struct Left {
    model: Vec<u8>,
    state: (Map<String, Value>, Vec<u8>),
    metrics: Vec<Value>,
}

impl Left {
    pub(crate) fn of(folder: &Path) -> Self {
        let lines = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        Left {
            model: fs::read(folder.join("model.safetensors")).unwrap(),
            state: tensors(&folder.join("trainer.safetensors")),
            metrics: lines.lines().map(measured).collect(),
        }
    }

    pub(crate) fn assert_same(&self, other: &Self) {
        assert_eq!(self.metrics, other.metrics);
        assert!(self.model == other.model, "another model");
        assert!(self.state == other.state, "another state");
    }

    pub(crate) fn model(&self) -> &[u8] {
        &self.model
    }
}

/// A line of the metrics without what no two runs share.
fn measured(line: &str) -> Value {
    let mut line: Map<String, Value> = serde_json::from_str(line).unwrap();
    line.remove("tokens_per_second");
    line.remove("peak_memory");
    line.into()
}

/// Header and data of a safetensors file, without its free text.
pub(crate) fn tensors(path: &Path) -> (Map<String, Value>, Vec<u8>) {
    let mut bytes = fs::read(path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let data = bytes.split_off(header);
    let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..]).unwrap();
    header.remove("__metadata__");
    (header, data)
}
