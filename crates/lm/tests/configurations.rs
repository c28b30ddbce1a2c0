//! What a configuration leaves open, or says by an older key, means what it means to mlx-lm.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{Device, Tensor};
use alluvium_lm::formats::safetensors::{self, File};
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
        let error = of(&[("type", json!("longrope")), factor()]).unwrap_err();
        let want = "type `longrope` is not known; known are default, linear, llama3, yarn and dynamic";
        assert!(error.contains(want), "{name}: {error}");
    }
}

#[test]
fn a_new_model_whose_configuration_does_not_say_has_a_tied_head_for_llama_alone() {
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
        let folder = tempfile::tempdir().unwrap();
        save(model.as_ref(), &Config::new(config.clone()).unwrap(), None, folder.path()).unwrap();
        let again = load(folder.path(), &Device::cpu()).unwrap().model;
        assert!(logits(again.as_ref()) == logits(model.as_ref()), "{name}");
    }
    let mut config = json_of("llama-f32");
    config["tie_word_embeddings"] = json!("yes");
    let error = new(&config).err().unwrap();
    assert!(error.contains("`tie_word_embeddings` is \"yes\", expected true or false"), "{error}");
}

/// The tensors of a file.
fn tensors(file: &File) -> Vec<(String, Tensor)> {
    file.names().map(|name| (name.to_owned(), file.tensor(name, &Device::cpu()).unwrap())).collect()
}

/// A copy of a model of the fixtures with the keys `tie_word_embeddings` at the top and in `text_config`, and with or
/// without an `lm_head` of its own; what loads from it.
fn with_ties(name: &str, [outer, inner]: [Option<bool>; 2], head: Option<f32>) -> Result<bool, String> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = json_of(name);
    let set = |part: Option<&mut Value>, tied: Option<bool>| {
        let Some(part) = part.and_then(Value::as_object_mut) else { return };
        part.remove("tie_word_embeddings");
        part.extend(tied.map(|tied| ("tie_word_embeddings".to_owned(), json!(tied))));
    };
    set(config.get_mut("text_config"), inner);
    set(Some(&mut config), outer);
    let file = safetensors::read(fixture(name).join("model.safetensors")).unwrap();
    let mut all = tensors(&file);
    all.retain(|(name, _)| !name.ends_with("lm_head.weight"));
    let (table, embedding) = all.iter().find(|(name, _)| name.ends_with("embed_tokens.weight")).unwrap().clone();
    if let Some(factor) = head {
        let scaled: Vec<f32> = embedding.to_vec::<f32>().unwrap().iter().map(|x| x * factor).collect();
        let head = Tensor::from_slice(&scaled, embedding.shape(), &Device::cpu()).unwrap();
        all.push((table.replace("model.embed_tokens", "lm_head"), head));
    }
    let all: Vec<(String, &Tensor)> = all.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    safetensors::write(folder.path().join("model.safetensors"), &all, &[]).unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let model = load(folder.path(), &Device::cpu()).map_err(|error| error.to_string())?.model;
    let mut has_head = false;
    model.visit("", &mut |name, _| has_head |= name.ends_with("lm_head.weight"));
    Ok(has_head)
}

#[test]
fn an_output_projection_in_the_file_decides_where_the_configuration_does_not_say_or_contradicts_itself() {
    let no = [None, None];
    for name in ["llama-f32", "qwen3-f32", "qwen3_5-f32", "qwen3_next-f32"] {
        assert_eq!(with_ties(name, no, Some(2.0)), Ok(true), "{name}");
        assert_eq!(with_ties(name, no, None), Ok(false), "{name}");
        let error = with_ties(name, [Some(false), Some(false)], None).unwrap_err();
        assert!(
            error.contains("no file has an `lm_head.weight`: the checkpoint has no output head"),
            "{name}: {error}"
        );
        assert_eq!(with_ties(name, [Some(true), Some(true)], Some(1.0)), Ok(false), "{name}");
        let error = with_ties(name, [Some(true), Some(true)], Some(2.0)).unwrap_err();
        assert!(error.contains("`tie_word_embeddings` is true, but `"), "{name}: {error}");
        assert!(error.contains("set the key to false to use it, or remove the tensor"), "{name}: {error}");
    }
    for said in [[Some(false), Some(true)], [Some(true), Some(false)]] {
        assert_eq!(with_ties("qwen3_5-f32", said, Some(2.0)), Ok(true), "{said:?}");
        assert_eq!(with_ties("qwen3_5-f32", said, None), Ok(false), "{said:?}");
    }
    assert_eq!(with_ties("qwen3_5-f32", [Some(false), None], Some(2.0)), Ok(true));
}

/// The error of a model of the fixtures with keys set in its configuration.
fn with_keys(name: &str, keys: &[(&str, Value)]) -> Result<Vec<f32>, String> {
    let mut config = json_of(name);
    let text = if config.get("text_config").is_some() { &mut config["text_config"] } else { &mut config };
    for (key, value) in keys {
        text[*key] = value.clone();
    }
    let folder = tempfile::tempdir().unwrap();
    copied(name, &config, folder.path());
    let loaded = load(folder.path(), &Device::cpu()).map_err(|error| error.to_string())?;
    Ok(logits(loaded.model.as_ref()))
}

#[test]
fn keys_that_change_the_arithmetic_are_honored_or_refused_by_name() {
    let all = ["llama-f32", "qwen3-f32", "qwen3_5-f32", "qwen3_5_moe-f32", "qwen3_next-f32"];
    for name in all {
        for (keys, want) in [
            (vec![("hidden_act", json!("gelu"))], "`hidden_act` is `gelu`; silu alone is known"),
            (vec![("hidden_act", json!(3))], "`hidden_act` is 3, expected a string"),
            (
                vec![("use_sliding_window", json!(true)), ("sliding_window", json!(4)), ("layer_types", Value::Null)],
                "`sliding_window` is 4 and used",
            ),
            (vec![("final_logit_softcapping", json!(30.0))], "`final_logit_softcapping` is 30"),
            (vec![("attn_output_gate", json!(false))], "`attn_output_gate` is false"),
            (vec![("attention_bias", json!(true))], "self_attn.q_proj.bias` ["),
            (vec![("rms_norm_eps", json!("1e-6"))], "`rms_norm_eps`: invalid type: string \"1e-6\""),
            (vec![("num_hidden_layers", json!("4"))], "`num_hidden_layers`: invalid type: string \"4\""),
        ] {
            let error = with_keys(name, &keys).unwrap_err();
            assert!(error.contains(want), "{name}: {error}");
        }
        let plain = with_keys(name, &[]).unwrap();
        for keys in [
            vec![("hidden_act", Value::Null), ("attention_bias", Value::Null)],
            vec![("use_sliding_window", json!(false)), ("sliding_window", json!(4))],
            vec![("final_logit_softcapping", Value::Null), ("logit_scale", json!(1.0))],
        ] {
            assert!(with_keys(name, &keys).unwrap() == plain, "{name}: {keys:?}");
        }
    }
    for name in ["llama-f32", "qwen3-f32"] {
        let error = with_keys(name, &[("partial_rotary_factor", json!(0.5))]).unwrap_err();
        assert!(error.contains("`partial_rotary_factor` is 0.5; this type of model rotates whole heads"), "{error}");
    }
    for (name, key) in [("qwen3_5_moe-f32", "num_experts_per_tok"), ("qwen3_next-f32", "moe_intermediate_size")] {
        let error = with_keys(name, &[(key, json!("2"))]).unwrap_err();
        assert!(error.contains(&format!("`{key}`: invalid type: string \"2\"")), "{name}: {error}");
    }
}

#[test]
fn rotary_keys_count_at_the_top_and_in_their_block_and_may_not_differ() {
    let block = json!({"rope_theta": 5e6, "rope_type": "default", "partial_rotary_factor": 0.5});
    let inside = with_keys("qwen3_5-f32", &[("rope_parameters", block.clone())]).unwrap();
    let keys = [("rope_theta", json!(5e6)), ("partial_rotary_factor", json!(0.5)), ("rope_parameters", Value::Null)];
    assert!(with_keys("qwen3_5-f32", &keys).unwrap() == inside);
    for (key, value, want) in [
        ("rope_theta", json!(1e6), "`rope_theta` is 1000000, but 5000000 in `rope_parameters`"),
        ("partial_rotary_factor", json!(0.25), "`partial_rotary_factor` is 0.25, but 0.5 in `rope_parameters`"),
        ("rope_theta", json!("big"), "`rope_theta` is \"big\", expected a number"),
    ] {
        let error = with_keys("qwen3_5-f32", &[("rope_parameters", block.clone()), (key, value)]).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
    let nested = json!({"full_attention": {"rope_theta": 1e4}});
    let error = with_keys("qwen3_5-f32", &[("rope_parameters", nested)]).unwrap_err();
    assert!(error.contains("`full_attention` is an object"), "{error}");
}

#[test]
fn types_of_layers_go_before_the_interval_and_must_fit_the_number_of_layers() {
    let plain = with_keys("qwen3_5-f32", &[]).unwrap();
    let layers = json_of("qwen3_5-f32")["text_config"]["num_hidden_layers"].as_u64().unwrap();
    let kind = |layer: u64| if (layer + 1).is_multiple_of(4) { "full_attention" } else { "linear_attention" };
    let types: Vec<&str> = (0..layers).map(kind).collect();
    let keys = [("layer_types", json!(types)), ("full_attention_interval", json!(3))];
    assert!(with_keys("qwen3_5-f32", &keys).unwrap() == plain);
    let error = with_keys("qwen3_5-f32", &[("layer_types", json!(types[1..]))]).unwrap_err();
    assert!(error.contains("`layer_types` has 3 layers, `num_hidden_layers` is 4"), "{error}");
    let error = with_keys("qwen3_5-f32", &[("layer_types", json!(vec!["mamba"; 4]))]).unwrap_err();
    assert!(error.contains("`layer_types[0]`: unknown variant `mamba`"), "{error}");
}

#[test]
fn dynamic_scaling_changes_nothing_up_to_the_length_of_the_training() {
    let scaled = |original: u32| {
        let block = json!({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e6});
        with_keys(
            "qwen3-f32",
            &[
                ("rope_scaling", Value::Null),
                ("rope_theta", json!(1e6)),
                ("rope_parameters", block),
                ("max_position_embeddings", json!(original)),
            ],
        )
    };
    let plain = with_keys("qwen3-f32", &[("rope_scaling", Value::Null), ("rope_theta", json!(1e6))]).unwrap();
    assert!(scaled(4).unwrap() == plain);
    assert!(scaled(3).unwrap() != plain);
    let error = scaled(0).unwrap_err();
    assert!(error.contains("dynamic scaling needs `max_position_embeddings`"), "{error}");
}

#[test]
fn single_dense_layers_of_a_mixture_are_read_for_qwen3_next_alone() {
    let keys = [("mlp_only_layers", json!([0])), ("decoder_sparse_step", json!(2))];
    assert!(with_keys("qwen3_5_moe-f32", &keys).unwrap() == with_keys("qwen3_5_moe-f32", &[]).unwrap());
    let error = with_keys("qwen3_next-f32", &keys[..1]).unwrap_err();
    assert!(error.contains("layers.0.mlp."), "{error}");
}
