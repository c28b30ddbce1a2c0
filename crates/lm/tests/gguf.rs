//! Models in GGUF give the logits that llama.cpp gives for them, loaded as they are or converted.
//!
//! The files and the expected logits are made by `bench/goldens/make_gguf.py`.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{DType, Device, Tensor};
use alluvium_lm::perplexity::logits;
use alluvium_lm::quantize::predicate::QuantConfig;
use alluvium_lm::{Change, Conversation, Loaded, Message, Tokenizer, convert, convert_gguf, inspect, load};
use alluvium_ops::Packing;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// How far logits may be from llama.cpp's in f32: a thousand roundings of values as large as 15.
const LOGITS: f64 = 2e-4;

/// Q6_K is dequantized to f16 by default: half a unit of 11 bits for each weight of the projection.
const ROUNDED: f64 = 2e-2;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/gguf")
}

fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(fixtures().join("expected.json")).unwrap()).unwrap()
}

/// The logits after the first and the last token.
fn both_ends(loaded: &Loaded, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut cache = loaded.model.cache(1).unwrap();
    let input = Tensor::from_slice(ids, [1, ids.len()], &Device::cpu()).unwrap();
    let hidden = loaded.model.forward_cached(&input, &mut cache).unwrap();
    let logits = logits(loaded.model.as_ref(), &hidden).unwrap().to_vec::<f32>().unwrap();
    let width = logits.len() / ids.len();
    vec![logits[..width].to_vec(), logits[logits.len() - width..].to_vec()]
}

fn gap(ours: &[Vec<f32>], theirs: &Value) -> f64 {
    let theirs: Vec<Vec<f64>> = serde_json::from_value(theirs.clone()).unwrap();
    let pairs = ours.iter().zip(&theirs).flat_map(|(a, b)| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b)
    });
    pairs.map(|(&a, b)| (f64::from(a) - b).abs()).fold(0.0, f64::max)
}

fn ids(expected: &Value) -> Vec<u32> {
    serde_json::from_value(expected["ids"].clone()).unwrap()
}

#[test]
fn every_architecture_gives_llama_cpps_logits_loaded_and_converted() {
    let (expected, device) = (expected(), Device::cpu());
    let ids = ids(&expected);
    let models = expected["models"].as_object().unwrap();
    assert_eq!(models.len(), 8);
    for (name, theirs) in models {
        let file = fixtures().join(name);
        let loaded = both_ends(&load(&file, &device).unwrap(), &ids);
        let bound = if name.contains("k_m") { ROUNDED } else { LOGITS };
        assert!(gap(&loaded, theirs) < bound, "{name}: {}", gap(&loaded, theirs));

        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("converted");
        let converted = convert_gguf(&file, &to, None, &Change::None, &mut |_, _| ()).unwrap();
        assert_eq!(both_ends(&load(&to, &device).unwrap(), &ids), loaded, "{name}: converted");
        let info = inspect(&to).unwrap();
        assert_eq!((info.parameters(), info.bytes()), (converted.parameters, converted.bytes), "{name}");
    }
}

#[test]
fn in_f32_the_k_formats_are_exact() {
    let (expected, folder) = (expected(), tempfile::tempdir().unwrap());
    let to = folder.path().join("f32");
    let name = "qwen35-q4_k_m.gguf";
    let file = fixtures().join(name);
    let converted = convert_gguf(&file, &to, Some(DType::F32), &Change::None, &mut |_, _| ()).unwrap();
    assert!(converted.packed > 0, "Q4_K stays in groups");
    let ours = both_ends(&load(&to, &Device::cpu()).unwrap(), &ids(&expected));
    assert!(gap(&ours, &expected["models"][name]) < LOGITS, "{}", gap(&ours, &expected["models"][name]));
}

#[test]
fn blocks_of_four_and_eight_bits_stay_packed_with_half_scales() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("converted");
    convert_gguf(&fixtures().join("llama-q4_1.gguf"), &to, None, &Change::None, &mut |_, _| ()).unwrap();
    let info = inspect(&to).unwrap();
    let formats: Vec<(&str, usize)> = info.packings.iter().map(|(name, &count)| (name.as_str(), count)).collect();
    assert_eq!(formats, [("4 bits in groups of 32", 14), ("8 bits in groups of 32", 1)]);
    let is_of_group = |name: &str| name.ends_with(".scales") || name.ends_with(".biases");
    assert!(info.tensors.iter().filter(|t| is_of_group(&t.name)).all(|t| t.dtype == "F16"));
    // codes of qkv and of the gate are of four and of eight bits; together they have eight
    let to = folder.path().join("next");
    convert_gguf(&fixtures().join("qwen3next-mixed.gguf"), &to, None, &Change::None, &mut |_, _| ()).unwrap();
    let info = inspect(&to).unwrap();
    assert_eq!(info.packings.keys().collect::<Vec<_>>(), ["8 bits in groups of 32"]);
    assert!(info.tensors.iter().any(|t| t.name.ends_with("in_proj_qkvz.scales")));
}

#[test]
fn a_change_applies_to_the_converted_model() {
    let folder = tempfile::tempdir().unwrap();
    let file = fixtures().join("qwen2-f16.gguf");
    let quantize = Change::Quantize(QuantConfig::of(Packing::Affine { bits: 4, group: 64 }));
    let four = folder.path().join("four");
    let converted = convert_gguf(&file, &four, None, &quantize, &mut |_, _| ()).unwrap();
    assert_eq!((converted.packed, converted.packed_before), (16, 0));
    let plain = folder.path().join("plain");
    convert_gguf(&file, &plain, None, &Change::None, &mut |_, _| ()).unwrap();
    let same = folder.path().join("same");
    convert(&plain, &same, None, &quantize, &mut |_, _| ()).unwrap();
    let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(bytes(&four), bytes(&same));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn the_tokenizer_is_that_of_the_original() {
    let loaded = load(&fixtures().join("qwen35-q4_0.gguf"), &Device::cpu()).unwrap();
    let ours = loaded.tokenizer.unwrap();
    let original = Tokenizer::load(fixtures().join("../models/qwen3_5-f32-hf")).unwrap();
    let texts = [
        "The gated delta rule writes a correction: don't forget.\n\n  def f(x):\r\n\treturn 12345",
        "Café e\u{301} 日本 🙂 <|im_start|>user\n<|im_end|> <think>ok</think>",
        "",
        "  two  spaces   ",
    ];
    for text in texts {
        let ids = ours.encode(text).unwrap();
        assert_eq!(ids, original.encode(text).unwrap(), "{text:?}");
        assert_eq!(ours.decode(&ids).unwrap(), original.decode(&ids).unwrap());
    }
    assert!(ours.eos_token_ids().contains(&362));
    let conversation = Conversation::new([Message::user("Hi")]);
    assert_eq!(conversation.render(&ours).unwrap(), conversation.render(&original).unwrap());
}

/// The bytes of a fixture, and where its file is to be written.
fn broken(change: impl Fn(&mut Vec<u8>)) -> String {
    let mut bytes = std::fs::read(fixtures().join("qwen3-q5_0.gguf")).unwrap();
    change(&mut bytes);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.gguf");
    std::fs::write(&file, bytes).unwrap();
    let to = folder.path().join("to");
    let error = convert_gguf(&file, &to, None, &Change::None, &mut |_, _| ()).unwrap_err().to_string();
    assert!(!to.exists() && std::fs::read_dir(folder.path()).unwrap().count() == 1, "something was left");
    assert_eq!(load(&file, &Device::cpu()).unwrap_err().to_string(), error);
    assert!(error.contains("broken.gguf"), "{error}");
    error
}

type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

/// Replaces the first place of a text by another of the same length.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
}

#[test]
fn files_that_are_not_whole_are_refused_in_words() {
    let u64_at = |bytes: &mut Vec<u8>, at: usize, n: u64| bytes[at..at + 8].copy_from_slice(&n.to_le_bytes());
    let cases: &[(Damage<'_>, &str)] = &[
        (&|b| b.truncate(b.len() - 1000), "ends beyond the"),
        (&|b| b.truncate(100), "its header is cut off"),
        (&|b| b[0] = b'X', "it does not begin with GGUF"),
        (&|b| b[4..8].copy_from_slice(&3u32.to_be_bytes()), "it is big-endian"),
        (&|b| b[4] = 9, "its version is 9, expected 2 or 3"),
        (&|b| u64_at(b, 8, u64::MAX), "it claims 18446744073709551615 tensors"),
        (&|b| u64_at(b, 16, 1 << 40), "metadata keys, at most 65536 are taken"),
        (&|b| u64_at(b, 24, 1 << 60), "it claims a text of 1152921504606846976 bytes"),
        (
            &|b| replace(b, b"\x05\0\0\0\0\0\0\0qwen3", b"\x05\0\0\0\0\0\0\0qwenX"),
            "the architecture is `qwenX`; known are llama, qwen2",
        ),
        (&|b| replace(b, b"qwen3.block_count", b"qwen3.clock_count"), "`qwen3.block_count` is missing"),
        (&|b| replace(b, b"blk.1.ffn_up.weight", b"blk.1.ffn_pu.weight"), "tensor `blk.1.ffn_up.weight` is missing"),
        (
            &|b| replace(b, b"blk.1.ffn_up.weight", b"blk.0.ffn_up.weight"),
            "tensor `blk.0.ffn_up.weight` is there twice",
        ),
        (&|b| replace(b, b"\x05\0\0\0\0\0\0\0qwen2", b"\x05\0\0\0\0\0\0\0qwen9"), "its pre-tokenizer is `qwen9`"),
    ];
    for (change, want) in cases {
        let error = broken(change);
        assert!(error.contains(want), "{error}\nwant: {want}");
    }
}

#[test]
fn shapes_beyond_the_file_are_refused_before_memory_is_asked_for() {
    // the number of rows of a tensor whose rows are put in another order
    let whole = std::fs::read(fixtures().join("llama-q4_1.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.gguf");
    let name = b"blk.0.attn_q.weight";
    let at = whole.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 8;
    let mut bytes = whole;
    assert_eq!(bytes[at..at + 8], 128u64.to_le_bytes());
    bytes[at..at + 8].copy_from_slice(&(1u64 << 41).to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let error = load(&file, &Device::cpu()).unwrap_err().to_string();
    assert!(error.contains("tensor `blk.0.attn_q.weight` ends beyond the"), "{error}");
}

#[test]
fn more_layers_ahead_than_layers_are_refused() {
    let error = broken(|bytes| {
        // one more key before the others
        let keys = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) + 1;
        bytes[16..24].copy_from_slice(&keys.to_le_bytes());
        let mut key = 26u64.to_le_bytes().to_vec();
        key.extend(b"qwen3.nextn_predict_layers");
        key.extend([4u32.to_le_bytes(), 9u32.to_le_bytes()].concat());
        bytes.splice(24..24, key);
        // the tensors begin at a multiple of 32 after it
        bytes.extend([0; 32]);
    });
    assert!(error.contains("it has 2 layers, 9 of them for multi-token prediction"), "{error}");
}

#[test]
fn a_type_that_cannot_be_read_is_named() {
    let error = broken(|bytes| {
        // name, two axes, their lengths, the type
        let name = b"blk.0.ffn_up.weight";
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 16;
        assert_eq!(bytes[at], 6);
        bytes[at] = 23;
    });
    assert!(error.contains("tensor `blk.0.ffn_up.weight` is IQ4_XS; F32, F16, BF16, Q4_0"), "{error}");
}

#[test]
fn no_cut_and_no_byte_makes_the_reader_panic() {
    let whole = std::fs::read(fixtures().join("qwen3-q5_0.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file.gguf");
    let mut seed = 1u64;
    for round in 0..400 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (at, value) = ((seed >> 33) as usize, (seed >> 20) as u8);
        let mut bytes = whole.clone();
        match round % 2 {
            0 => bytes.truncate(at % whole.len()),
            // headers, not elements
            _ => bytes[at % 12_000] = value,
        }
        std::fs::write(&file, bytes).unwrap();
        let _ = load(&file, &Device::cpu());
        let _ = inspect(&file);
    }
}

#[test]
fn a_split_model_is_read_from_its_first_part() {
    let (expected, device) = (expected(), Device::cpu());
    let part = |n: usize| fixtures().join(format!("split/qwen3-0000{n}-of-00002.gguf"));
    let loaded = both_ends(&load(&part(1), &device).unwrap(), &ids(&expected));
    assert!(gap(&loaded, &expected["models"]["qwen3-q5_0.gguf"]) < LOGITS);
    assert_eq!(inspect(&part(1)).unwrap().files.len(), 2);
    let error = load(&part(2), &device).unwrap_err().to_string();
    assert!(error.contains("it is part 2 of 2; give the first part"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("m-00001-of-00002.gguf");
    std::fs::copy(part(1), &alone).unwrap();
    let error = load(&alone, &device).unwrap_err().to_string();
    assert!(error.contains("m-00002-of-00002.gguf"), "{error}");
    let other = folder.path().join("other.gguf");
    std::fs::rename(&alone, &other).unwrap();
    let error = load(&other, &device).unwrap_err().to_string();
    assert!(error.contains("expected a name that ends in -00001-of-00002.gguf"), "{error}");
}

#[test]
fn a_sentencepiece_vocabulary_gives_llama_cpps_ids() {
    let golden = std::fs::read(fixtures().join("sentencepiece.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let loaded = load(&fixtures().join("llama-sentencepiece.gguf"), &Device::cpu()).unwrap();
    let tokenizer = loaded.tokenizer.unwrap();
    let (texts, ids) = (golden["texts"].as_array().unwrap(), golden["ids"].as_array().unwrap());
    for (text, theirs) in texts.iter().zip(ids) {
        let text = text.as_str().unwrap();
        let theirs: Vec<u32> = serde_json::from_value(theirs.clone()).unwrap();
        let ours = tokenizer.encode(text).unwrap();
        assert_eq!(ours, theirs, "{text:?}");
        if !text.contains("<s>") {
            assert_eq!(tokenizer.decode(&ours).unwrap(), text);
        }
    }
    assert_eq!(tokenizer.eos_token_ids(), [2]);
}
