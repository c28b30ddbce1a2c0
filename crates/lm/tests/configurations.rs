//! What a configuration leaves open, or says by an older key, means what it means to mlx-lm.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{Device, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::{Config, LanguageModel, initialize, load, save};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

/// The configuration of a model of the fixtures.
fn json_of(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name).join("config.json")).unwrap()).unwrap()
}

fn new(config: &Value) -> Result<Box<dyn LanguageModel>, String> {
    initialize(&Config::new(config.clone()).unwrap(), 1, &Device::cpu()).map_err(|error| error.to_string())
}

/// What a model makes of a few tokens.
fn logits(model: &dyn LanguageModel) -> Vec<f32> {
    let ids = Tensor::from_slice(&[5u32, 9, 200, 31], [1, 4], &Device::cpu()).unwrap();
    let hidden = model.forward_cached(&ids, &mut model.cache(1).unwrap()).unwrap();
    model.lm_head().linear(&hidden).unwrap().to_vec().unwrap()
}

/// A model of the fixtures in another folder, with another configuration.
fn copied(name: &str, config: &Value, folder: &Path) {
    std::fs::copy(fixture(name).join("model.safetensors"), folder.join("model.safetensors")).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn the_older_key_type_says_how_positions_are_scaled_and_goes_before_the_newer_one() {
    for (name, part, block) in [
        ("llama-f32", "", "rope_scaling"),
        ("qwen3-f32", "", "rope_scaling"),
        ("qwen3_5-f32", "text_config", "rope_parameters"),
    ] {
        let of = |keys: &[(&str, Value)]| {
            let mut config = json_of(name);
            let text = if part.is_empty() { &mut config } else { &mut config[part] };
            let mut scaling = text[block].as_object().cloned().unwrap_or_default();
            scaling.retain(|key, _| !matches!(key.as_str(), "type" | "rope_type" | "factor"));
            scaling.extend(keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
            text[block] = scaling.into();
            new(&config).map(|model| logits(model.as_ref()))
        };
        let factor = || ("factor", json!(4.0));
        let plain = of(&[("rope_type", json!("default"))]).unwrap();
        let linear = of(&[("rope_type", json!("linear")), factor()]).unwrap();
        assert!(plain != linear, "{name}");
        assert!(linear == of(&[("type", json!("linear")), factor()]).unwrap(), "{name}");
        for (older, newer, want) in
            [("linear", "default", &linear), ("default", "linear", &plain), ("linear", "linear", &linear)]
        {
            let both = of(&[("type", json!(older)), ("rope_type", json!(newer)), factor()]);
            assert!(both.unwrap() == *want, "{name}: {older} and {newer}");
        }
        assert!(linear == of(&[("type", Value::Null), ("rope_type", json!("linear")), factor()]).unwrap(), "{name}");
        let error = of(&[("type", json!("yarn")), factor()]).unwrap_err();
        assert!(error.contains("type `yarn` is not known; known are default, linear and llama3"), "{name}: {error}");
    }
}

#[test]
fn what_projects_to_words_where_a_file_does_not_say_is_the_embedding_for_llama_alone() {
    for (name, part, tied) in [
        ("llama-f32", "", true),
        ("qwen3-f32", "", false),
        ("qwen3_5-f32", "text_config", false),
        ("qwen3_5_moe-f32", "text_config", false),
        ("qwen3_next-f32", "", false),
    ] {
        let mut config = json_of(name);
        let text = if part.is_empty() { &mut config } else { &mut config[part] };
        text.as_object_mut().unwrap().remove("tie_word_embeddings");
        let model = new(&config).unwrap();
        let mut own = false;
        model.visit("", &mut |name, _| own |= name.ends_with("lm_head.weight"));
        assert_eq!(own, !tied, "{name}");

        // the projection of a file goes unread where the embedding takes its place
        let folder = tempfile::tempdir().unwrap();
        save(model.as_ref(), None, folder.path()).unwrap();
        if tied {
            let head =
                Tensor::zeros(model.lm_head().dense().unwrap().shape(), alluvium_core::DType::F32, &Device::cpu())
                    .unwrap();
            let path = folder.path().join("model-head.safetensors");
            safetensors::write(&path, &[("lm_head.weight".to_owned(), &head)], &[]).unwrap();
        }
        let again = load(folder.path(), &Device::cpu()).unwrap().model;
        assert!(logits(again.as_ref()) == logits(model.as_ref()), "{name}");
    }
    let mut config = json_of("llama-f32");
    config["tie_word_embeddings"] = json!("yes");
    let error = new(&config).err().unwrap();
    assert!(error.contains("`tie_word_embeddings` is \"yes\", expected true or false"), "{error}");
}

#[test]
fn keys_that_mlx_lm_does_not_read_change_nothing() {
    for (name, part, keys) in [
        ("qwen3_5_moe-f32", "text_config", vec![("mlp_only_layers", json!([0])), ("decoder_sparse_step", json!(2))]),
        ("qwen3-f32", "", vec![("attention_bias", json!(true)), ("mlp_bias", json!(true))]),
    ] {
        let mut config = json_of(name);
        let text = if part.is_empty() { &mut config } else { &mut config[part] };
        for (key, value) in keys {
            text[key] = value;
        }
        let folder = tempfile::tempdir().unwrap();
        copied(name, &config, folder.path());
        let [ours, plain] = [folder.path(), &fixture(name)].map(|folder| load(folder, &Device::cpu()).unwrap().model);
        assert!(logits(ours.as_ref()) == logits(plain.as_ref()), "{name}");
    }
    // Qwen3-Next's are read
    let mut config = json_of("qwen3_next-f32");
    config["mlp_only_layers"] = json!([0]);
    let folder = tempfile::tempdir().unwrap();
    copied("qwen3_next-f32", &config, folder.path());
    let error = load(folder.path(), &Device::cpu()).unwrap_err().to_string();
    assert!(error.contains("layers.0.mlp."), "{error}");
}
