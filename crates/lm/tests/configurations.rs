//! What a configuration leaves open, or says by an older key, means what it means to mlx-lm.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{Device, Tensor};
use alluvium_lm::{Config, LanguageModel, initialise};
use serde_json::{Value, json};
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name)
}

/// The configuration of a model of the fixtures.
fn json_of(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name).join("config.json")).unwrap()).unwrap()
}

fn new(config: &Value) -> Result<Box<dyn LanguageModel>, String> {
    initialise(&Config::new(config.clone()).unwrap(), 1, &Device::cpu()).map_err(|error| error.to_string())
}

/// What a model makes of a few tokens.
fn logits(model: &dyn LanguageModel) -> Vec<f32> {
    let ids = Tensor::from_slice(&[5u32, 9, 200, 31], [1, 4], &Device::cpu()).unwrap();
    let hidden = model.step(&ids, &mut model.cache(1).unwrap()).unwrap();
    model.head().linear(&hidden).unwrap().to_vec().unwrap()
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
