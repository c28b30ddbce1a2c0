//! Files that are not what they should be: an error that says so, never a panic.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::rng::Rng;
use alluvium_core::{DType, Device, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::{Config, initialize, inspect, load, save};
use serde_json::{Value, json};
use std::path::Path;

/// A safetensors file with this header and number of data bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}

fn one(entry: &str, data: usize) -> Vec<u8> {
    file(&format!(r#"{{"a":{entry}}}"#), data)
}

/// Holds what is said of each file against what is to be said.
fn refuses(cases: &[(&str, Vec<u8>, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (name, bytes, want) in cases {
        std::fs::write(&path, bytes).unwrap();
        let error = safetensors::read(&path).unwrap_err().to_string();
        assert!(error.contains(want), "{name}: {error}");
        assert!(error.starts_with(&path.display().to_string()), "{name}: {error}");
        assert!(inspect(&path).is_err());
    }
}

/// One number, at the beginning of the data.
const FOUR: &str = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;

#[test]
fn every_broken_safetensors_file_is_refused_in_words() {
    let long = |n: u64| [&n.to_le_bytes()[..], b"{}"].concat();
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("empty", vec![], "it has 0 bytes"),
        ("cut in the length", vec![1, 2, 3], "it has 3 bytes"),
        ("header beyond the file", long(3), "its header claims 3 bytes, the file has 2 after it"),
        ("header beyond memory", long(u64::MAX), "its header claims 18446744073709551615 bytes, at most"),
        ("header cut", file(r#"{"a":{"dtype":"F32""#, 0), "its header is no JSON object"),
        ("header a list", file("[]", 0), "its header is no JSON object"),
        ("header no text", [&4u64.to_le_bytes()[..], &[255; 4]].concat(), "its header is no JSON object"),
        ("deep", file(&"[".repeat(100_000), 0), "its header is no JSON object"),
        ("entry no object", one("3", 0), "tensor `a`: its dtype is missing"),
        ("dtype", one(r#"{"dtype":"X","shape":[1],"data_offsets":[0,4]}"#, 4), "its dtype `X` is not known"),
        ("no shape", one(r#"{"dtype":"F32","data_offsets":[0,4]}"#, 4), "its shape is missing"),
        ("negative", one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#, 4), "its shape is no list of lengths"),
        (
            "overflow",
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}"#, 4),
            "more elements",
        ),
        ("rank", one(r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1],"data_offsets":[0,4]}"#, 4), "has 7 axes"),
        ("no offsets", one(r#"{"dtype":"F32","shape":[1]}"#, 4), "its data_offsets are missing"),
        (
            "reversed",
            one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#, 4),
            "its bytes 4 to 0 are not in the file's 4",
        ),
        (
            "past the end",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 4),
            "its bytes 0 to 8 are not in the file's 4",
        ),
        (
            "size",
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, 4),
            "[2] of F32 takes 8 bytes, 4 are given",
        ),
        (
            "gap",
            one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#, 8),
            "the 4 bytes before tensor `a` belong to no tensor",
        ),
        ("rest", one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#, 8), "the last 4 bytes belong to no tensor"),
        (
            "overlap",
            file(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                8,
            ),
            "tensor `b` begins inside another one",
        ),
    ];
    refuses(cases);
}

#[test]
fn a_name_that_a_header_has_twice_is_named() {
    refuses(&[
        ("twice", file(&format!(r#"{{"a":{FOUR},"a":{FOUR}}}"#), 4), "file: tensor `a` is there twice;"),
        (
            "twice in two places",
            file(&format!(r#"{{"a":{FOUR},"a":{{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}}}"#), 8),
            "file: tensor `a` is there twice;",
        ),
        (
            "a key twice",
            one(r#"{"dtype":"F32","shape":[1],"dtype":"U32","data_offsets":[0,4]}"#, 4),
            "tensor `a`: its dtype is there twice",
        ),
        (
            "a note twice",
            file(&format!(r#"{{"__metadata__":{{"format":"pt","format":"mlx"}},"a":{FOUR}}}"#), 4),
            "`format` of its __metadata__ is there twice",
        ),
        (
            "notes twice",
            file(&format!(r#"{{"__metadata__":{{}},"a":{FOUR},"__metadata__":{{}}}}"#), 4),
            "`__metadata__` is there twice",
        ),
    ]);
}

#[test]
fn no_damage_to_a_checkpoint_makes_a_reader_panic() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    let mut rng = Rng::new(1, "damage");
    let mut refusals = 0;
    for name in ["model.safetensors", "config.json", "model.safetensors.index.json"] {
        let path = folder.path().join(name);
        let whole = std::fs::read(&path).unwrap();
        // most of the header and little of the data, where damage is no error
        let reach = whole.len().min(4_000);
        for _ in 0..300 {
            let mut bytes = whole.clone();
            for _ in 0..1 + rng.below(3) {
                match rng.below(3) {
                    0 => bytes.truncate(1 + rng.below(whole.len())),
                    1 => bytes.insert(rng.below(reach.min(bytes.len())), b"0{}[]:,\"-9e"[rng.below(11)]),
                    _ => {
                        let at = rng.below(reach.min(bytes.len()));
                        bytes[at] = rng.below(256) as u8;
                    }
                }
            }
            std::fs::write(&path, &bytes).unwrap();
            refusals += usize::from(load(folder.path(), &Device::cpu()).is_err());
        }
        std::fs::write(&path, &whole).unwrap();
    }
    load(folder.path(), &Device::cpu()).unwrap();
    assert!(refusals > 500, "only {refusals} of 900 were refused");
}

#[test]
fn unaligned_data_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let header =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}"#;
    let mut bytes = file(header, 1);
    bytes.extend(1.5f32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let file = safetensors::read(&path).unwrap();
    assert_eq!(file.tensor("b", &Device::cpu()).unwrap().item().unwrap(), 1.5);
    assert!(file.tensor("c", &Device::cpu()).unwrap_err().to_string().contains("it has no tensor `c`"));
}

fn sizes() -> Value {
    json!({
        "model_type": "qwen3_5",
        "kept": {"unknown": [1, 2]},
        "torch_dtype": "bfloat16",
        "text_config": {
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "full_attention_interval": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "linear_num_key_heads": 1,
            "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "vocab_size": 16,
            "tie_word_embeddings": true,
        },
    })
}

fn saved(folder: &Path) {
    let config = Config::new(sizes()).unwrap();
    save(initialize(&config, 1, &Device::cpu()).unwrap().as_ref(), &config, None, folder).unwrap();
}

fn refused(folder: &Path) -> String {
    load(folder, &Device::cpu()).unwrap_err().to_string()
}

#[test]
fn every_wrong_configuration_is_refused_in_words() {
    let cases: &[(&str, Value, &str)] = &[
        (
            "/model_type",
            json!("gpt2"),
            "model_type `gpt2` is not known; known are llama, qwen2, qwen3, qwen3_moe, olmo_hybrid, qwen3_5, ",
        ),
        ("/text_config/hidden_size", Value::Null, "text_config: missing field `hidden_size`"),
        ("/text_config/hidden_size", json!(8.5), "invalid type: floating point `8.5`, expected usize"),
        ("/text_config/hidden_size", json!(0), "`hidden_size` is 0, expected 1 to 131072"),
        ("/text_config/hidden_size", json!(1u64 << 40), "`hidden_size` is 1099511627776, expected 1 to 131072"),
        ("/text_config/num_hidden_layers", json!(1 << 20), "`num_hidden_layers` is 1048576, expected 1 to 1024"),
        ("/text_config/full_attention_interval", json!(0), "`full_attention_interval` is 0, expected 1 to 1024"),
        ("/text_config/linear_num_key_heads", json!(3), "expected a multiple of `linear_num_key_heads` = 3"),
        ("/text_config/linear_key_head_dim", json!(257), "`linear_key_head_dim` is 257, expected 1 to 256"),
        ("/text_config/head_dim", json!(6), "rotates 1 of `head_dim` = 6, expected an even number"),
        ("/text_config/rms_norm_eps", json!(-1.0), "`rms_norm_eps` is -1, expected 0 or more"),
        ("/text_config/vocab_size", json!(-5), "invalid value: integer `-5`, expected usize"),
    ];
    for (key, value, want) in cases {
        let mut config = sizes();
        let (parent, last) = key.rsplit_once('/').unwrap();
        let parent = config.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value.is_null() {
            true => drop(parent.remove(last)),
            false => drop(parent.insert(last.to_owned(), value.clone())),
        }
        let result = initialize(&Config::new(config).unwrap(), 1, &Device::cpu());
        let error = result.err().unwrap_or_else(|| panic!("{key} = {value} was taken")).to_string();
        assert!(error.contains(want), "{key}: {error}");
    }
}

#[test]
fn a_nan_in_a_configuration_is_named_as_bad_json() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "qwen3_5", "x": NaN}"#).unwrap();
    let error = Config::read(folder.path()).unwrap_err().to_string();
    assert!(error.contains("config.json: not valid JSON: expected value at line 1"), "{error}");
}

#[test]
#[cfg(unix)]
fn a_pipe_in_the_place_of_a_file_is_refused_where_reading_it_would_wait_for_ever() {
    let files =
        ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"];
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/llama-f32");
    for name in files {
        let folder = tempfile::tempdir().unwrap();
        saved(folder.path());
        for name in &files[3..] {
            std::fs::copy(fixture.join(name), folder.path().join(name)).unwrap();
        }
        let path = folder.path().join(name);
        std::fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let (done, result) = std::sync::mpsc::channel();
        let place = folder.path().to_owned();
        std::thread::spawn(move || done.send(refused(&place)));
        let error = result.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        assert_eq!(error, format!("cannot read {}: it is no regular file", path.display()));
    }
}

#[test]
fn a_token_that_the_model_has_no_row_for_is_named_before_any_is_read() {
    let model = initialize(&Config::new(sizes()).unwrap(), 1, &Device::cpu()).unwrap();
    let mut session = alluvium_lm::Session::new(model.as_ref()).unwrap();
    let error = session.prefill(&[3, 16, 2]).unwrap_err().to_string();
    let want = "token 16 is outside the vocabulary of 16 tokens; use the tokenizer that belongs to the model";
    assert!(error.contains(want), "{error}");
    // it was refused before it did harm
    session.prefill(&[3, 15, 2]).unwrap();
}

#[test]
fn weights_that_do_not_fit_the_configuration_are_named() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    let original = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    assert!(original.contains("\"unknown\"") && original.contains(r#""torch_dtype": "float32""#));
    load(folder.path(), &Device::cpu()).unwrap();
    for (from, to, want) in [
        (r#""vocab_size": 16"#, r#""vocab_size": 17"#, "embed_tokens.weight` is [16, 8], config.json asks for [17, 8]"),
        (r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 3"#, "layers.2.input_layernorm.weight` [8] is missing"),
    ] {
        assert!(original.contains(from), "{original}");
        std::fs::write(folder.path().join("config.json"), original.replace(from, to)).unwrap();
        let error = refused(folder.path());
        assert!(error.contains(want) && error.contains("model.safetensors: "), "{error}");
    }
    let untied = original.replace(r#""tie_word_embeddings": true"#, r#""tie_word_embeddings": false"#);
    std::fs::write(folder.path().join("config.json"), untied).unwrap();
    let error = refused(folder.path());
    assert!(error.contains("config.json: ") && error.contains("no file has an `lm_head.weight`"), "{error}");
    let fewer = original
        .replace(r#""num_hidden_layers": 2"#, r#""num_hidden_layers": 1"#)
        .replace(r#""full_attention_interval": 2"#, r#""full_attention_interval": 1"#);
    std::fs::write(folder.path().join("config.json"), fewer).unwrap();
    let error = refused(folder.path());
    assert!(error.contains("is missing") || error.contains("has no place in the model"), "{error}");
}

#[test]
fn a_tensor_that_nothing_asks_for_is_named() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    let extra = Tensor::full([1], 1.0, &Device::cpu()).unwrap();
    let path = folder.path().join("model-extra.safetensors");
    safetensors::write(&path, &[("extra.weight".to_owned(), &extra)], &[]).unwrap();
    let error = refused(folder.path());
    assert!(error.contains("model-extra.safetensors: tensor `extra.weight` has no place in the model"), "{error}");
    let model = initialize(&Config::new(sizes()).unwrap(), 1, &Device::cpu()).unwrap();
    let error = save(model.as_ref(), &Config::new(sizes()).unwrap(), None, folder.path()).unwrap_err().to_string();
    assert!(error.contains("these weights would be read as a part of the saved model"), "{error}");
}

/// The model of [`saved`] with some tensors in another file and an index that names both.
fn in_two_files(folder: &Path, second: &str, is_second: impl Fn(&str) -> bool) {
    saved(folder);
    let path = folder.join("model.safetensors");
    let file = safetensors::read(&path).unwrap();
    let all = file.names().map(|name| (name.to_owned(), file.tensor(name, &Device::cpu()).unwrap()));
    let (there, here): (Vec<_>, Vec<_>) = all.partition(|(name, _)| is_second(name));
    let mut map = serde_json::Map::new();
    for (name, tensors) in [(second, &there), ("model.safetensors", &here)] {
        let borrowed: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        std::fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        safetensors::write(folder.join(name), &borrowed, &[]).unwrap();
        map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
    }
    let index = json!({"weight_map": map}).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
}

#[test]
fn an_index_adds_the_files_that_it_names_and_says_which_one_is_missing() {
    for second in ["model-00002-of-00002.safetensors", "text.safetensors", "part/weights.safetensors"] {
        let folder = tempfile::tempdir().unwrap();
        in_two_files(folder.path(), second, |name| name.contains("layers.1."));
        load(folder.path(), &Device::cpu()).unwrap();
        std::fs::remove_file(folder.path().join(second)).unwrap();
        let error = refused(folder.path());
        assert!(error.contains("is missing; config.json asks for it; model.safetensors.index.json says"), "{error}");
        assert!(error.contains(&format!("in {second}, which is not in the folder; fetch that file")), "{error}");
    }
    for outside in ["../model.safetensors", "/etc/passwd"] {
        let folder = tempfile::tempdir().unwrap();
        saved(folder.path());
        let index = json!({"weight_map": {"a": outside}}).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let error = refused(folder.path());
        assert!(error.contains("expected a file of the folder"), "{error}");
    }
}

#[test]
fn an_index_of_files_that_never_came_does_not_matter_where_all_tensors_are_there() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    let index = json!({"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}});
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    load(folder.path(), &Device::cpu()).unwrap();
}

#[test]
fn a_folder_without_weights_says_so() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), sizes().to_string()).unwrap();
    assert!(refused(folder.path()).contains("no file is called model*.safetensors"));
}

#[test]
fn a_failed_save_leaves_the_old_model_and_no_temporaries() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    let before = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    // a folder in the place of a file: the last steps of the save fail
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    std::fs::create_dir(folder.path().join("config.json")).unwrap();
    std::fs::write(folder.path().join("config.json/x"), "").unwrap();
    let model = initialize(&Config::new(sizes()).unwrap(), 1, &Device::cpu()).unwrap();
    save(model.as_ref(), &Config::new(sizes()).unwrap(), None, folder.path()).unwrap_err();
    assert_eq!(std::fs::read(folder.path().join("model.safetensors")).unwrap(), before);
    let names = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.contains("partial")));
}

#[test]
fn the_same_seed_gives_the_same_model_and_another_seed_another() {
    let bytes = |seed| {
        let model = initialize(&Config::new(sizes()).unwrap(), seed, &Device::cpu()).unwrap();
        let mut bytes = Vec::new();
        model.visit("", &mut |_, tensor| bytes.extend(tensor.to_bytes().unwrap()));
        bytes
    };
    assert!(bytes(1) == bytes(1));
    assert!(bytes(1) != bytes(2));
}

/// A tensor's name and data after conversion.
type Change<'a> = &'a dyn Fn(&str, Tensor) -> Option<(String, Tensor)>;

/// A model of the fixtures with its tensors changed, or left out, and another block of quantization.
fn changed(folder: &Path, from: &str, quantization: Option<Value>, change: Change<'_>) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(from);
    let mut config: Value = serde_json::from_slice(&std::fs::read(fixture.join("config.json")).unwrap()).unwrap();
    if let Some(block) = quantization {
        config["quantization"] = block;
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let file = safetensors::read(fixture.join("model.safetensors")).unwrap();
    let read = |name: &str| change(name, file.tensor(name, &Device::cpu()).unwrap());
    let tensors: Vec<(String, Tensor)> = file.names().filter_map(read).collect();
    let tensors: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    safetensors::write(folder.join("model.safetensors"), &tensors, &[]).unwrap();
}

#[test]
fn every_damage_to_a_quantized_model_is_named() {
    const GATE: &str = "model.layers.0.mlp.switch_mlp.gate_proj";
    let same = |name: &str, tensor: Tensor| Some((name.to_owned(), tensor));
    let without = |part: &'static str| {
        move |name: &str, tensor: Tensor| (name != format!("{GATE}.{part}")).then(|| (name.to_owned(), tensor))
    };
    let as_floats = |name: &str, tensor: Tensor| {
        let tensor = match name == format!("{GATE}.weight") {
            true => Tensor::zeros(tensor.shape(), DType::F32, &Device::cpu()).unwrap(),
            false => tensor,
        };
        Some((name.to_owned(), tensor))
    };
    let as_bytes = |name: &str, tensor: Tensor| {
        let tensor = match name == format!("{GATE}.scales") {
            true => Tensor::zeros(tensor.shape(), DType::U8, &Device::cpu()).unwrap(),
            false => tensor,
        };
        Some((name.to_owned(), tensor))
    };
    let narrow = |name: &str, tensor: Tensor| {
        let tensor = match name == format!("{GATE}.biases") {
            true => Tensor::zeros([4, 64, 2], DType::F32, &Device::cpu()).unwrap(),
            false => tensor,
        };
        Some((name.to_owned(), tensor))
    };
    let entry = |packing: Value| Some(json!({"group_size": 64, "bits": 4, GATE: packing}));
    type Case<'a> = (Option<Value>, Change<'a>, &'a str);
    let cases: &[Case] = &[
        (
            None,
            &without("scales"),
            "its weight is packed, but `model.layers.0.mlp.switch_mlp.gate_proj.scales` is missing",
        ),
        (None, &without("biases"), "gate_proj.biases` [4, 64, 1] is missing"),
        (None, &without("weight"), "gate_proj.weight` [4, 64, 64] is missing"),
        (None, &as_floats, "gate_proj.weight` is F32, expected U32: it has scales"),
        (None, &as_bytes, "words and 1 scales for 64 elements a row are those of no packing"),
        (None, &narrow, "gate_proj.biases` is F32 [4, 64, 2], its scales are F32 [4, 64, 1]"),
        (
            entry(json!({"group_size": 64, "bits": 8})),
            &same,
            "config.json says Affine { bits: 8, group: 64 }, its tensors are",
        ),
        (entry(json!(false)), &same, "gate_proj.weight` is U32, expected F32, F16 or BF16"),
        (entry(json!({"bits": 9})), &same, "9 bits, expected 1, 2, 3, 4, 5, 6 or 8"),
        (Some(json!({"quant_method": "gptq"})), &same, "quant_method `gptq` is not read"),
    ];
    for (block, change, want) in cases {
        let folder = tempfile::tempdir().unwrap();
        changed(folder.path(), "qwen3_next-q4g64", block.clone(), change);
        let error = refused(folder.path());
        assert!(error.contains(want), "expected {want}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    // no block at all: the tensors say how they are packed
    changed(folder.path(), "qwen3_next-q4g64", Some(Value::Null), &same);
    load(folder.path(), &Device::cpu()).unwrap();
}

#[test]
fn experts_of_transformers_that_do_not_fit_are_named() {
    const UP: &str = "model.layers.0.mlp.experts.2.up_proj.weight";
    let without = |name: &str, tensor: Tensor| (name != UP).then(|| (name.to_owned(), tensor));
    let folder = tempfile::tempdir().unwrap();
    changed(folder.path(), "qwen3_next-f32-hf", None, &without);
    let error = refused(folder.path());
    assert!(error.contains("lack expert 2 of `model.layers.0.mlp.switch_mlp.up_proj.weight`"), "{error}");
    let other = |name: &str, tensor: Tensor| {
        Some((name.to_owned(), if name == UP { tensor.reshape([32, 128]).unwrap() } else { tensor }))
    };
    changed(folder.path(), "qwen3_next-f32-hf", None, &other);
    let error = refused(folder.path());
    assert!(error.contains("experts.2.up_proj.weight` is F32 [32, 128]"), "{error}");
}
