//! Readers of files against a great many damaged ones; see [`fuzzing`].

#![allow(clippy::unwrap_used, clippy::panic)]

mod fuzzing;

use alluvium_core::{Device, Tensor};
use alluvium_lm::ChatTemplate;
use alluvium_lm::formats::safetensors;
use alluvium_lm::{Config, Tokenizer, initialize, inspect, load, save};
use fuzzing::{Fuzz, Seed};
use serde_json::{Value, json};
use std::path::Path;

/// As many as take a few seconds.
const FEW: usize = 4_000;
const MILLION: usize = 1_000_000;

const CONFIG: &str = include_str!("corpus/config.json");
const FAMILIES: [&str; 2] = [
    include_str!("../../../fixtures/models/llama-f32/config.json"),
    include_str!("../../../fixtures/models/qwen3-f32/config.json"),
];
const TEMPLATES: [&str; 3] = [
    include_str!("../../../fixtures/models/qwen3_5-f32/chat_template.jinja"),
    include_str!("corpus/template-tools.jinja"),
    include_str!("corpus/template-macros.jinja"),
];
const TOKENIZERS: [&str; 4] = [
    include_str!("corpus/tokenizer.json"),
    include_str!("corpus/tokenizer-lines.json"),
    include_str!("corpus/tokenizer-parts.json"),
    include_str!("corpus/tokenizer-spaces.json"),
];

const GGUF: [&[u8]; 2] = [
    include_bytes!("../../../fixtures/gguf/qwen3-q5_0.gguf"),
    include_bytes!("../../../fixtures/gguf/llama-sentencepiece.gguf"),
];

#[test]
fn no_safetensors_file_makes_its_reader_panic_hang_or_take_memory() {
    headers(FEW);
}

#[test]
fn no_configuration_makes_its_reader_panic_hang_or_take_memory() {
    configurations(FEW);
}

#[test]
fn no_folder_makes_the_loader_panic_hang_or_take_memory() {
    folders(FEW);
}

#[test]
fn no_tokenizer_makes_its_reader_panic_hang_or_take_memory() {
    tokenizers(FEW);
}

#[test]
fn no_chat_template_makes_its_reader_panic_hang_or_take_memory() {
    templates(FEW);
}

#[test]
fn no_gguf_file_makes_the_loader_panic_hang_or_take_memory() {
    gguf_files(FEW / 4);
}

#[test]
#[ignore = "takes many minutes"]
fn a_million_gguf_files() {
    gguf_files(MILLION);
}

#[test]
#[ignore = "takes many minutes"]
fn a_million_chat_templates() {
    templates(MILLION);
}

#[test]
#[ignore = "takes minutes"]
fn a_million_safetensors_files() {
    headers(MILLION);
}

#[test]
#[ignore = "takes minutes"]
fn a_million_configurations() {
    configurations(MILLION);
}

#[test]
#[ignore = "takes minutes"]
fn a_million_folders() {
    folders(MILLION);
}

#[test]
#[ignore = "takes many minutes"]
fn a_million_tokenizers() {
    tokenizers(MILLION);
}

/// The header, and every tensor it names.
fn headers(inputs: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let device = Device::cpu();
    let tensor = |shape: &[usize]| Tensor::full(alluvium_core::Shape::new(shape).unwrap(), 0.5, &device).unwrap();
    let tensors = [("a", tensor(&[2, 3])), ("b.weight", tensor(&[1])), ("c", tensor(&[0, 4]))];
    let tensors: Vec<(String, &Tensor)> = tensors.iter().map(|(n, t)| ((*n).to_owned(), t)).collect();
    safetensors::write(&path, &tensors, &[("format".to_owned(), "mlx".to_owned())]).unwrap();
    let written = std::fs::read(&path).unwrap();
    let halves = concat!(
        r#"{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"y":{"dtype":"I64","shape":[],"data_offsets":[4,12]},"#,
        r#""z":{"dtype":"U8","shape":[3],"data_offsets":[12,15]}}"#
    );
    let halves = [&(halves.len() as u64).to_le_bytes()[..], halves.as_bytes(), &[1; 15]].concat();
    let seeds = [Seed::safetensors(written), Seed::safetensors(halves)];
    let fuzz = Fuzz { name: "safetensors", seeds: &seeds, inputs, constant: 64 << 10 };
    let taken = fuzz.run(|bytes| {
        std::fs::write(&path, bytes).unwrap();
        let _ = inspect(&path);
        let Ok(file) = safetensors::read(&path) else { return false };
        for name in file.names() {
            let _ = file.tensor(name, &Device::cpu());
        }
        true
    });
    assert!(taken > inputs / 200, "{taken}");
}

/// `config.json` and the sizes in it, as far as a model can be built without its files.
fn configurations(inputs: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let seeds = [CONFIG, FAMILIES[0], FAMILIES[1]].map(Seed::text);
    let fuzz = Fuzz { name: "config", seeds: &seeds, inputs, constant: 64 << 10 };
    let taken = fuzz.run(|bytes| {
        std::fs::write(&path, bytes).unwrap();
        let Ok(config) = Config::read(folder.path()) else { return false };
        let _ = (config.eos_token_ids(), config.vocab_size());
        alluvium_lm::build(&config, &mut Nothing).is_err_and(|e| e.to_string().contains("no tensors here"))
    });
    assert!(taken > inputs / 20, "{taken}");
}

/// A source without tensors: what comes before the first one is the configuration.
struct Nothing;

impl alluvium_lm::WeightSource for Nothing {
    fn tensor(&mut self, _: &str, _: alluvium_core::Shape, _: alluvium_lm::Init) -> alluvium_core::Result<Tensor> {
        Err(alluvium_core::Error::value("fuzz", "no tensors here"))
    }
}

/// A whole folder, one of its files damaged.
fn folders(inputs: usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut sizes: Value = serde_json::from_str(CONFIG).unwrap();
    sizes["text_config"]["num_hidden_layers"] = json!(1);
    let config = Config::new(sizes).unwrap();
    let model = initialize(&config, 1, &Device::cpu()).unwrap();
    save(model.as_ref(), &config, None, folder.path()).unwrap();
    let whole: usize = folder.path().read_dir().unwrap().map(|e| e.unwrap().metadata().unwrap().len() as usize).sum();
    for name in ["model.safetensors", "config.json", "model.safetensors.index.json"] {
        let path = folder.path().join(name);
        let bytes = std::fs::read(&path).unwrap();
        let seed = if name == "model.safetensors" { Seed::safetensors(&bytes[..]) } else { Seed::text(&bytes[..]) };
        let constant = (64 << 10) + 16 * whole;
        let fuzz = Fuzz { name, seeds: &[seed], inputs: inputs / 3 + 1, constant };
        fuzz.run(|bytes| {
            std::fs::write(&path, bytes).unwrap();
            load(folder.path(), &Device::cpu()).is_ok()
        });
        std::fs::write(&path, bytes).unwrap();
    }
}

/// `tokenizer.json` and the files beside it; a text there and back.
fn tokenizers(inputs: usize) {
    const TEXT: &str = "the  tree's 42 caf\u{e9}s\n <|end|> \u{1f642} <|pad|>xx";
    let folder = tempfile::tempdir().unwrap();
    let beside = [
        ("tokenizer_config.json", r#"{"eos_token": {"content": "<|end|>"}, "chat_template": "{{ messages }}"}"#),
        ("generation_config.json", r#"{"eos_token_id": [3, 7], "pad_token_id": 3}"#),
    ];
    let read = |folder: &Path| {
        let Ok(tokenizer) = Tokenizer::load(folder) else { return false };
        let _ = (tokenizer.vocab_size(), tokenizer.eos_token_ids(), tokenizer.chat_template());
        if let Ok(ids) = tokenizer.encode(TEXT) {
            let _ = tokenizer.decode(&ids);
            let mut stream = tokenizer.detokenizer();
            for id in ids {
                let _ = stream.push(id);
            }
            let _ = stream.finish();
        }
        let _ = tokenizer.decode(&[0, u32::MAX, 5]);
        true
    };
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    let seeds = TOKENIZERS.map(Seed::text);
    // a part of a pattern such as `\p{L}` is a program of some hundred kilobytes, whatever its length
    let fuzz = Fuzz { name: "tokenizer", seeds: &seeds, inputs, constant: 64 << 20 };
    let taken = fuzz.run(|bytes| {
        write("tokenizer.json", bytes);
        read(folder.path())
    });
    assert!(taken > inputs / 20, "{taken}");
    write("tokenizer.json", TOKENIZERS[0].as_bytes());
    for (name, text) in beside {
        let fuzz = Fuzz { name, seeds: &[Seed::text(text)], inputs: inputs / 2, constant: 64 << 20 };
        fuzz.run(|bytes| {
            write(name, bytes);
            read(folder.path())
        });
        write(name, text.as_bytes());
    }
}

/// The metadata, the tensors and the tokenizer of a GGUF file.
fn gguf_files(inputs: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let seeds = [GGUF[0], GGUF[1]].map(|bytes| Seed::text(bytes.to_vec()));
    let fuzz = Fuzz { name: "gguf", seeds: &seeds, inputs, constant: 64 << 20 };
    let taken = fuzz.run(|bytes| {
        std::fs::write(&path, bytes).unwrap();
        let _ = inspect(&path);
        load(&path, &Device::cpu()).is_ok()
    });
    assert!(taken > inputs / 20, "{taken}");
}

/// A template, with messages of three roles and a tool.
fn templates(inputs: usize) {
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?\n"},
        {"role": "assistant", "content": "<think>easy</think>4", "tool_calls": [{"name": "sum", "arguments": {"a": [2, 2.5]}}]},
        {"role": "user", "content": "caf\u{e9} \u{1f642}"},
    ]);
    let tools = json!([{"name": "sum", "parameters": {"type": "object", "required": ["a"]}}]);
    let context = json!({"messages": messages, "tools": tools, "add_generation_prompt": true, "eos_token": "<|end|>"});
    let seeds = TEMPLATES.map(Seed::template);
    // a text may be as long as 64 MiB when it is written, and one that is repeated 100 MB
    let fuzz = Fuzz { name: "template", seeds: &seeds, inputs, constant: 512 << 20 };
    let taken = fuzz.run(|bytes| match std::str::from_utf8(bytes) {
        Ok(template) => ChatTemplate::new(template).and_then(|t| t.render(&context)).is_ok(),
        Err(_) => false,
    });
    assert!(taken > inputs / 20, "{taken}");
}
