//! Files that are not what their names say, as downloads and other programs leave them: each is named, with what to do.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::Device;
use alluvium_lm::{Adapter, Conversation, Message, Tokenizer, load};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const LFS: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4912\n";
const PAGE: &[u8] = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

/// A copy of a model's folder that can be changed.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap().flatten() {
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn refused(folder: &Path, parts: &[&str], what: &str) {
    let error = match load(folder, &Device::cpu()) {
        Ok(_) => panic!("{what}: it is taken"),
        Err(error) => error.to_string(),
    };
    assert!(error.starts_with(&folder.display().to_string()), "{what}: {error}");
    for part in parts {
        assert!(error.contains(part), "{what}: {error}");
    }
}

/// A zip archive's beginning with the name of its first entry.
fn zip(entry: &str) -> Vec<u8> {
    let mut bytes = b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0".to_vec();
    bytes.resize(26, 0);
    bytes.extend((entry.len() as u16).to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend(entry.as_bytes());
    bytes.resize(400, 7);
    bytes
}

#[test]
fn weights_that_are_something_else_are_named() {
    let tar = {
        let mut bytes = vec![0; 600];
        bytes[..4].copy_from_slice(b"dir/");
        bytes[257..262].copy_from_slice(b"ustar");
        bytes
    };
    let cases: [(&[u8], &str); 9] = [
        (LFS, "it is a Git LFS pointer, not the file itself; run `git lfs pull`"),
        (PAGE, "it is a web page, not the file itself"),
        (b"<?xml version=\"1.0\"?><Error>AccessDenied</Error>", "it is a web page"),
        (&zip("archive/data.pkl"), "it is a PyTorch file; save the model as safetensors with transformers"),
        (&zip("model/config.json"), "it is a zip archive; unpack it"),
        (b"\x80\x02}q\0(X\x06\0\0\0weight", "it is a PyTorch file"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "it is a gzip archive"),
        (&tar, "it is a tar archive"),
        (b"GGUF\x03\0\0\0\0\0\0\0", "it is a GGUF file; give it as `--model FILE.gguf`"),
    ];
    for (bytes, want) in cases {
        let folder = copy("qwen3_5-f32");
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        refused(folder.path(), &["model.safetensors: not a safetensors file: ", want], want);
    }
}

#[test]
fn json_files_that_are_something_else_are_named() {
    for file in ["config.json", "tokenizer_config.json", "tokenizer.json", "model.safetensors.index.json"] {
        for (bytes, want) in [(LFS, "it is a Git LFS pointer"), (PAGE, "it is a web page")] {
            let folder = copy("qwen3_5-f32");
            fs::write(folder.path().join(file), bytes).unwrap();
            refused(folder.path(), &[file, want], file);
        }
    }
}

#[test]
fn a_folder_with_other_weights_says_which_and_what_to_do() {
    let cases = [
        ("pytorch_model.bin", "pytorch_model.bin is for PyTorch; save the model as safetensors with transformers"),
        ("consolidated.00.pth", "consolidated.00.pth is for PyTorch"),
        ("tiny.gguf", "give tiny.gguf itself: --model "),
        ("consolidated.safetensors", "consolidated.safetensors may be in a layout of its own"),
        ("adapter_model.safetensors", "adapter_model.safetensors is an adapter"),
        ("adapters.safetensors", "adapters.safetensors is an adapter"),
        ("training_args.bin", "no file is called model*.safetensors"),
    ];
    for (file, want) in cases {
        let folder = copy("qwen3_5-f32");
        for weights in ["model.safetensors", "model.safetensors.index.json"] {
            fs::remove_file(folder.path().join(weights)).unwrap();
        }
        fs::write(folder.path().join(file), b"x").unwrap();
        refused(folder.path(), &["there are no weights", want], file);
    }
}

#[test]
fn a_dtype_that_is_not_known_is_no_damage() {
    let folder = copy("qwen3_5-f32");
    let file = folder.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let at = bytes.windows(5).position(|part| part == b"\"F32\"").unwrap();
    let mut other = bytes.clone();
    other[at..at + 5].copy_from_slice(b"\"F4\" ");
    fs::write(&file, other).unwrap();
    refused(folder.path(), &["its dtype `F4` is not known; convert the checkpoint to bf16, f16 or f32"], "F4");
    let error = load(folder.path(), &Device::cpu()).err().unwrap().to_string();
    assert!(!error.contains("fetch it again"), "{error}");
}

#[test]
fn a_checkpoint_without_a_head_is_refused() {
    let folder = copy("llama-f32");
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let has_head = alluvium_lm::formats::safetensors::read(folder.path().join("model.safetensors"))
        .unwrap()
        .names()
        .any(|name| name.ends_with("lm_head.weight"));
    assert!(!has_head, "the fixture has a head: take another one");
    config["tie_word_embeddings"] = false.into();
    fs::write(&path, config.to_string()).unwrap();
    refused(folder.path(), &["`tie_word_embeddings` is false", "the checkpoint has no output head"], "no head");
}

#[test]
fn an_empty_template_is_named() {
    for text in ["", " \n"] {
        let folder = copy("qwen3_5-f32");
        fs::write(folder.path().join("chat_template.jinja"), text).unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let error = Conversation::new([Message::user("Hello")]).encode(&tokenizer).unwrap_err().to_string();
        assert!(error.contains("chat_template.jinja is empty"), "{error}");
    }
}

#[test]
fn an_adapter_that_is_a_file_or_something_else_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("adapters.safetensors");
    fs::write(&file, LFS).unwrap();
    let error = |path: &Path| Adapter::read(path, &Device::cpu()).unwrap_err().to_string();
    assert!(error(&file).contains("it is a file, expected the folder that has it"), "{}", error(&file));
    let config =
        r#"{"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 8, "scale": 20, "dropout": 0}}"#;
    fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    assert!(error(folder.path()).contains("it is a Git LFS pointer"), "{}", error(folder.path()));
}
