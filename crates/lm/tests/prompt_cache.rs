//! Caches in files: mlx-lm's are read, ours are like them.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{Device, Result};
use alluvium_lm::cache::{load_prompt_cache, save_prompt_cache};
use alluvium_lm::formats::safetensors;
use alluvium_lm::{
    Cache, Config, Conversation, GenerateOptions, LanguageModel, Loaded, Message, PromptEnd, Session, initialize, load,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The cache in a file, for a model.
fn cache_of(path: &Path, model: &dyn LanguageModel) -> Result<(Cache, BTreeMap<String, String>)> {
    load_prompt_cache(path, &model.cache_shapes(), model.dtype(), model.device())
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// The prompt that the golden holds, as `mlx_lm.cache_prompt` puts it: the message is not ended.
fn read(session: &mut Session<'_>, tokenizer: &alluvium_lm::Tokenizer) {
    let end = PromptEnd::ContinueFinalMessage;
    let conversation = Conversation { end, ..Conversation::new([Message::user("The gated delta rule")]) };
    session.prefill(&conversation.encode(tokenizer).unwrap()).unwrap();
}

#[test]
fn a_cache_of_mlx_lm_goes_on_as_one_that_was_just_read() {
    let Loaded { model, tokenizer, .. } = load(&fixture("models/qwen3_5-f32"), &Device::cpu()).unwrap();
    let (model, tokenizer) = (model.as_ref(), tokenizer.unwrap());
    let (cache, about) = cache_of(&fixture("cli/prompt_cache.safetensors"), model).unwrap();
    assert_eq!((cache.offset(), about["model"].as_str()), (16, "models/qwen3_5-f32"));
    let mut ours = Session::new(model).unwrap();
    read(&mut ours, &tokenizer);
    assert_eq!(ours.cache().offset(), 16);

    // what followed in mlx-lm's own run: ` writes`, the end of the message, the beginning of an answer
    let rest = tokenizer.encode_without_special_tokens(" writes<|im_end|>\n<|im_start|>assistant\n").unwrap();
    let options = GenerateOptions { max_tokens: 8, ..GenerateOptions::default() };
    let mut theirs = Session::with_cache(model, cache);
    let made = theirs.generate(Some(&tokenizer), &rest, &options).unwrap();
    // mlx-lm prints the first piece without its first space
    assert_eq!((made.text.trim_start(), made.prompt_tokens), ("state @ k) * b", 16));
    let whole = [ours.tokens().to_vec(), rest].concat();
    let again = ours.generate(Some(&tokenizer), &whole, &options).unwrap();
    assert_eq!((again.tokens, again.reused_tokens), (made.tokens, 16));
}

#[test]
fn a_saved_cache_has_the_names_shapes_and_metadata_of_mlx_lm_and_comes_back() {
    let Loaded { model, tokenizer, .. } = load(&fixture("models/qwen3_5-f32"), &Device::cpu()).unwrap();
    let (model, tokenizer) = (model.as_ref(), tokenizer.unwrap());
    let mut session = Session::new(model).unwrap();
    read(&mut session, &tokenizer);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let about = BTreeMap::from(
        [("model", "models/qwen3_5-f32"), ("tokenizer_config", r#"{"trust_remote_code": false}"#)]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    save_prompt_cache(&path, session.cache(), &about).unwrap();
    let (ours, theirs) =
        (safetensors::read(&path).unwrap(), safetensors::read(fixture("cli/prompt_cache.safetensors")).unwrap());
    assert_eq!(ours.metadata(), theirs.metadata());
    assert_eq!(ours.names().collect::<Vec<_>>(), theirs.names().collect::<Vec<_>>());
    for (name, entry) in ours.entries() {
        let want = theirs.entry(name).unwrap();
        assert_eq!((&entry.dtype, entry.shape), (&want.dtype, want.shape), "{name}");
        if entry.dtype.name() == "F32" && entry.bytes > 0 {
            let read = |file: &safetensors::File| file.tensor(name, &Device::cpu()).unwrap().to_vec::<f32>().unwrap();
            let far = read(&ours).iter().zip(read(&theirs)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-4, "{name}: {far}");
        }
    }
    let (cache, _) = cache_of(&path, model).unwrap();
    assert_eq!(cache.offset(), session.cache().offset());
    let mut again = Session::with_cache(model, cache);
    again.step(5).unwrap();
    session.step(5).unwrap();
    assert_eq!(again.logits().unwrap().to_vec::<f32>().unwrap(), session.logits().unwrap().to_vec::<f32>().unwrap());
}

#[test]
fn a_cache_of_another_model_is_refused() {
    let Loaded { model, .. } = load(&fixture("models/llama-f32"), &Device::cpu()).unwrap();
    let error = cache_of(&fixture("cli/prompt_cache.safetensors"), model.as_ref()).unwrap_err().to_string();
    assert!(error.contains("it is the cache of a model with 4 layers, this one has 2"), "{error}");
    let error = cache_of(&fixture("models/llama-f32/model.safetensors"), model.as_ref()).unwrap_err().to_string();
    assert!(error.contains("a model with 0 layers"), "{error}");
}

const CACHE: &str = "cli/prompt_cache.safetensors";

/// A model like that of the golden, but for one size.
fn like_the_golden(key: &str, size: usize) -> Box<dyn alluvium_lm::LanguageModel> {
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(fixture("models/qwen3_5-f32/config.json")).unwrap()).unwrap();
    config["text_config"][key] = size.into();
    config["text_config"].as_object_mut().unwrap().remove("layer_types");
    initialize(&Config::new(config).unwrap(), 1, &Device::cpu()).unwrap()
}

#[test]
fn a_cache_of_a_model_with_as_many_layers_of_other_sizes_is_refused_in_words() {
    for (key, size, want) in [
        ("linear_num_value_heads", 4, "tensor `0.0.0` is F32 [1, 3, 512], that of this model's cache [1, 3, 768]"),
        ("linear_conv_kernel_dim", 3, "tensor `0.0.0` is F32 [1, 3, 512], that of this model's cache [1, 2, 512]"),
        ("head_dim", 32, "tensor `3.0` is F32 [1, 1, 256, 64], that of this model's cache [1, 1, 256, 32]"),
        ("num_key_value_heads", 2, "tensor `3.0` is F32 [1, 1, 256, 64], that of this model's cache [1, 2, 256, 64]"),
        ("full_attention_interval", 2, "layer 1 is a ArraysCache, which is none of this model's"),
    ] {
        let model = like_the_golden(key, size);
        let error = cache_of(&fixture(CACHE), model.as_ref()).unwrap_err().to_string();
        assert!(error.contains(want), "{key}: {error}");
        assert!(error.ends_with("; it was made with `models/qwen3_5-f32`"), "{key}: {error}");
        assert!(error.starts_with(&fixture(CACHE).display().to_string()), "{key}: {error}");
    }
}

/// The golden with a tensor left out, or under another name, or with one more.
fn changed(path: &Path, change: &dyn Fn(&str) -> Vec<String>) {
    let bytes = std::fs::read(fixture(CACHE)).unwrap();
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    let (mut new, mut kept) = (Map::new(), Vec::new());
    for (name, entry) in header {
        if name == "__metadata__" {
            new.insert(name, entry);
            continue;
        }
        let [from, to] = [0, 1].map(|i| entry["data_offsets"][i].as_u64().unwrap() as usize);
        for name in change(&name) {
            let start = kept.len();
            kept.extend(&data[from..to]);
            let offsets = json!([start, kept.len()]);
            new.insert(name, json!({"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": offsets}));
        }
    }
    let header = Value::from(new).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &kept].concat();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_cache_without_one_of_its_tensors_or_with_another_is_refused() {
    let Loaded { model, .. } = load(&fixture("models/qwen3_5-f32"), &Device::cpu()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    changed(&path, &|name| vec![name.to_owned()]);
    cache_of(&path, model.as_ref()).unwrap();
    for gone in ["0.0.0", "0.0.1", "1.0.1", "3.0", "3.1"] {
        changed(&path, &|name| if name == gone { vec![] } else { vec![name.to_owned()] });
        let error = cache_of(&path, model.as_ref()).unwrap_err().to_string();
        assert!(error.contains(&format!("tensor `{gone}` is missing; this model's cache has it as [1, ")), "{error}");
    }
    for more in ["4.0", "0.0.2", "3.3", "note"] {
        changed(&path, &|name| {
            let surplus = (name == "0.0.1").then(|| more.to_owned());
            [name.to_owned()].into_iter().chain(surplus).collect()
        });
        let error = cache_of(&path, model.as_ref()).unwrap_err().to_string();
        assert!(error.contains(&format!("tensor `{more}` has no place in this model's cache")), "{error}");
    }
    // what mlx-lm has of a batch stands for the padding of its sequences
    changed(&path, &|name| match name {
        "0.1" => vec![],
        "0.0.1" => vec!["0.0.1".to_owned(), "0.1".to_owned()],
        _ => vec![name.to_owned()],
    });
    let error = cache_of(&path, model.as_ref()).unwrap_err().to_string();
    assert!(error.contains("tensor `0.1` has no place in this model's cache"), "{error}");
}

#[test]
fn a_cache_whose_layers_have_read_different_numbers_of_tokens_is_refused() {
    let Loaded { model, tokenizer, .. } = load(&fixture("models/llama-f32"), &Device::cpu()).unwrap();
    let (model, tokenizer) = (model.as_ref(), tokenizer.unwrap());
    let mut session = Session::new(model).unwrap();
    read(&mut session, &tokenizer);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    save_prompt_cache(&path, session.cache(), &BTreeMap::new()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let start = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&whole[8..start]).unwrap();
    for (layer, len) in [(0, 0i32), (0, 3), (1, 0), (1, 3)] {
        let mut bytes = whole.clone();
        let at = start + header[format!("{layer}.2")]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let error = cache_of(&path, model).unwrap_err().to_string();
        assert!(error.contains("has read"), "layer {layer}, {len}: {error}");
    }
}
