//! Adapters of mlx-lm and of PEFT against the logits that those programs gave, from `fixtures/`.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{DType, Device, Tape, Tensor};
use alluvium_lm::adapter::{Adapter, Fuse, fuse, write_peft};
use alluvium_lm::formats::safetensors;
use alluvium_lm::perplexity::logits;
use alluvium_lm::{
    Batch, Checkpointing, FineTuneType, LanguageModel, Loaded, LoraParameters, attach_low_rank, detach_adapters,
    freeze, load, visit_trainable, visit_trainable_mut,
};
use alluvium_ops::{Over, sum};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(path)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn last_logits(model: &dyn LanguageModel, ids: &[u32]) -> Vec<f32> {
    let ids = Tensor::from_slice(ids, [1, ids.len()], &Device::cpu()).unwrap();
    let mut cache = model.cache(1).unwrap();
    let hidden = model.forward_cached(&ids, &mut cache).unwrap();
    let rows = hidden.reshape([ids.elements(), hidden.shape().last()]).unwrap();
    logits(model, &rows.rows(ids.elements() - 1, 1).unwrap()).unwrap().to_vec().unwrap()
}

fn gap(ours: &[f32], theirs: &Value) -> f64 {
    let theirs = theirs.as_array().unwrap();
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - b.as_f64().unwrap()).abs()).fold(0.0, f64::max)
}

fn model(path: &str) -> Loaded {
    load(&fixture(path), &Device::cpu()).unwrap()
}

fn attached(base: &str, folder: &str) -> Loaded {
    let mut loaded = model(base);
    Adapter::read(&fixture(folder), &Device::cpu()).unwrap().attach(loaded.model.as_mut()).unwrap();
    loaded
}

#[test]
fn adapters_of_mlx_lm_give_its_logits() {
    for name in ["lora-qwen3_next-f32", "dora-qwen3_5-f32", "full-qwen3_5-f32"] {
        let expected = json(&format!("train/{name}/expected.json"));
        let prompt = ids(&expected["prompt_ids"]);
        let mut loaded = model(expected["base"].as_str().unwrap());
        let before = last_logits(loaded.model.as_ref(), &prompt);
        let folder = fixture(&format!("train/{name}"));
        Adapter::read(&folder, &Device::cpu()).unwrap().attach(loaded.model.as_mut()).unwrap();
        let after = last_logits(loaded.model.as_ref(), &prompt);
        let far = gap(&after, &expected["last_logits"]);
        assert!(far < 1e-3, "{name}: {far}");
        assert!(gap(&before, &expected["last_logits"]) > 0.01, "{name}: the adapter changes nothing");
        if name.starts_with("full") {
            continue;
        }
        assert!(detach_adapters(loaded.model.as_mut()) > 0);
        assert_eq!(last_logits(loaded.model.as_ref(), &prompt), before, "{name}: the base is not what it was");
    }
}

/// mlx computes a quantized model in bf16 on a CPU, so the truth is the same adapter in f32.
#[test]
fn an_adapter_of_a_quantized_model_gives_the_logits_of_f32() {
    let expected = json("train/lora-qwen3_5-bf16-q4g64/expected.json");
    let loaded = attached("models/qwen3_5-bf16-q4g64", "train/lora-qwen3_5-bf16-q4g64");
    let prompt = ids(&expected["prompt_ids"]);
    let far = gap(&last_logits(loaded.model.as_ref(), &prompt), &expected["last_logits_f32ref"]);
    assert!(far < 1e-3, "{far}");
    for name in ["fused-q4", "fused-dequant"] {
        let fused = model(&format!("train/lora-qwen3_5-bf16-q4g64-{name}"));
        let far = gap(&last_logits(fused.model.as_ref(), &prompt), &expected[name]["last_logits_f32ref"]);
        assert!(far < 1e-3, "{name}: {far}");
    }
}

#[test]
fn adapters_of_peft_give_its_logits() {
    for (name, base) in [("hf/lora-qwen3", "hf/qwen3"), ("hf/lora-qwen3_5-text", "hf/qwen3_5-text")] {
        let expected = json(&format!("{name}/expected.json"));
        let loaded = attached(base, name);
        let far = gap(&last_logits(loaded.model.as_ref(), &ids(&expected["long_ids"])), &expected["long_last_logits"]);
        assert!(far < 1e-4, "{name}: {far}");
    }
}

/// Each stored tensor's bytes.
fn tensors(folder: &str) -> Vec<(String, DType, Vec<u8>)> {
    let file = safetensors::read(fixture(folder).join("model.safetensors")).unwrap();
    let read = |name: &str| file.tensor(name, &Device::cpu()).unwrap();
    file.names().map(|name| (name.to_owned(), read(name).dtype(), read(name).to_bytes().unwrap())).collect()
}

#[test]
fn fused_models_are_those_of_mlx_lm_byte_for_byte() {
    for (form, golden) in [(Fuse::Requantize, "fused-q4"), (Fuse::Dequantize, "fused-dequant")] {
        let mut loaded = attached("models/qwen3_5-bf16-q4g64", "train/lora-qwen3_5-bf16-q4g64");
        assert!(fuse(loaded.model.as_mut(), form).unwrap() > 20);
        let mut ours = std::collections::BTreeMap::new();
        loaded.model.visit("", &mut |name, tensor| {
            ours.insert(name, tensor.clone());
        });
        let golden = tensors(&format!("train/lora-qwen3_5-bf16-q4g64-{golden}"));
        assert_eq!(golden.iter().map(|(name, ..)| name).collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
        for (name, dtype, bytes) in golden {
            // what is no matrix is held in f32
            let tensor = if ours[&name].dtype() == dtype {
                ours[&name].clone()
            } else {
                alluvium_ops::cast(&ours[&name], dtype).unwrap()
            };
            let ours = tensor.to_bytes().unwrap();
            let count = ours.iter().zip(&bytes).filter(|(a, b)| a != b).count();
            assert_eq!(count, 0, "{form:?} {name}: of {} bytes {count} differ", bytes.len());
        }
    }
}

/// The gradient of the sum of the hidden states with respect to each trainable parameter.
fn gradients(model: &mut dyn LanguageModel, keep: Checkpointing) -> Vec<(String, Vec<f32>)> {
    let device = Device::cpu();
    let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 300).collect();
    let positions: Vec<u32> = (0..40).collect();
    let tensor = |ids: &[u32]| Tensor::from_slice(ids, [1, ids.len()], &device).unwrap();
    let tape = Tape::new();
    visit_trainable_mut(model, &mut |_, parameter| *parameter = tape.watch(parameter));
    let batch = Batch { ids: &tensor(&tokens), positions: &tensor(&positions), cu_seqlens: None };
    let hidden = model.forward(&batch, keep).unwrap();
    let grads = sum(&model.logits(&hidden).unwrap(), Over::All).unwrap().backward().unwrap();
    let mut all = Vec::new();
    visit_trainable(model, &mut |name, parameter| {
        let values = grads.get(parameter).map(|g| g.to_vec::<f32>().unwrap()).unwrap_or_default();
        all.push((name, values));
    });
    all
}

#[test]
fn only_the_updates_are_trained_and_recomputing_a_layer_changes_no_gradient() {
    for (base, kind) in [
        ("models/qwen3_next-q4g64", FineTuneType::Lora),
        ("models/qwen3_5-bf16-q4g64", FineTuneType::Dora),
        ("models/qwen3_next-f32", FineTuneType::Lora),
    ] {
        let mut model = model(base).model;
        freeze(model.as_mut(), &|_| true);
        let parameters = LoraParameters { rank: 3, ..LoraParameters::default() };
        attach_low_rank(model.as_mut(), kind, &parameters, 2, 5).unwrap();
        // an update of zero has no gradient for `a`
        model.visit_mut("", &mut |name, tensor| {
            if name.ends_with("lora_b") {
                *tensor = Tensor::full(tensor.shape(), 1e-3, &Device::cpu()).unwrap();
            }
        });
        let all = gradients(model.as_mut(), Checkpointing::None);
        assert!(!all.is_empty());
        for (name, values) in &all {
            let part = name.rsplit_once('.').unwrap().1;
            assert!(["lora_a", "lora_b", "m"].contains(&part), "{base}: {name} is trained");
            assert!(name.contains("layers.2.") || name.contains("layers.3."), "{base}: {name} is in another layer");
            assert!(values.iter().any(|&x| x != 0.0), "{base}: {name} has no gradient");
        }
        assert_eq!(gradients(model.as_mut(), Checkpointing::Layers), all, "{base}");
    }
}

/// The update of an embedding is that of the output projection, too, where the two are tied.
#[test]
fn an_embedding_and_a_head_are_adapted_by_their_names() {
    let mut model = model("models/qwen3-f32").model;
    let tied = model.lm_head().shape();
    let mut names = Vec::new();
    model.weights_mut("", &mut |name, _, _| names.push(name.to_owned()));
    let key = names.iter().find(|name| name.ends_with("embed_tokens")).unwrap().clone();
    let keys = Some(vec![key.clone()]);
    let parameters = LoraParameters { rank: 4, scale: 2.0, keys, ..LoraParameters::default() };
    let ids: Vec<u32> = (0..30).collect();
    let before = last_logits(model.as_ref(), &ids);
    assert_eq!(attach_low_rank(model.as_mut(), FineTuneType::Lora, &parameters, -1, 1).unwrap(), [key]);
    assert_eq!(last_logits(model.as_ref(), &ids), before);
    model.visit_mut("", &mut |name, tensor| {
        if name.ends_with("lora_b") {
            *tensor = Tensor::full(tensor.shape(), 0.05, &Device::cpu()).unwrap();
        }
    });
    let adapted = last_logits(model.as_ref(), &ids);
    assert_ne!(adapted, before);
    fuse(model.as_mut(), Fuse::Requantize).unwrap();
    assert_eq!(model.lm_head().shape(), tied);
    let fused = last_logits(model.as_ref(), &ids);
    let far = adapted.iter().zip(&fused).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far < 1e-4, "{far}");
}

#[test]
fn what_does_not_fit_the_model_is_refused_and_changes_nothing() {
    let mut other = model("models/qwen3-f32").model;
    let adapter = Adapter::read(&fixture("train/lora-qwen3_next-f32"), &Device::cpu()).unwrap();
    let error = adapter.attach(other.as_mut()).unwrap_err().to_string();
    assert!(error.contains("made for another model"), "{error}");
    assert_eq!(detach_adapters(other.as_mut()), 0);

    let full = Adapter::read(&fixture("train/full-qwen3_5-f32"), &Device::cpu()).unwrap();
    let error = full.attach(other.as_mut()).unwrap_err().to_string();
    assert!(error.contains("made for another model") && error.contains("adapters.safetensors"), "{error}");

    let mut attach = |parameters: LoraParameters, kind, layers| {
        attach_low_rank(other.as_mut(), kind, &parameters, layers, 0).unwrap_err().to_string()
    };
    let error = attach(LoraParameters { rank: 100_000, ..LoraParameters::default() }, FineTuneType::Lora, -1);
    assert!(error.contains("the rank is 100000, expected at most"), "{error}");
    let keys = Some(vec!["self_attn.q_proj".to_owned(), "self_attn.nothing".to_owned()]);
    let error = attach(LoraParameters { keys, ..LoraParameters::default() }, FineTuneType::Lora, -1);
    assert!(error.contains("the model has no module `self_attn.nothing`"), "{error}");
    let error = attach(LoraParameters::default(), FineTuneType::Lora, 99);
    assert!(error.contains("num_layers is 99, the model has 2 layers"), "{error}");

    let mut experts = model("models/qwen3_next-f32").model;
    let error = attach_low_rank(experts.as_mut(), FineTuneType::Dora, &LoraParameters::default(), -1, 0).unwrap_err();
    assert!(error.to_string().contains("DoRA adapts linear projections"), "{error}");

    let nothing = Adapter::read(&fixture("models/qwen3-f32"), &Device::cpu()).unwrap_err().to_string();
    assert!(nothing.contains("the folder has neither adapters.safetensors"), "{nothing}");
}

#[test]
fn what_is_written_for_peft_has_its_names_and_gives_the_same_logits() {
    let keys = |folder: &Path| {
        let file = safetensors::read(folder.join("adapter_model.safetensors")).unwrap();
        file.entries().map(|(name, entry)| (name.to_owned(), entry.shape)).collect::<Vec<_>>()
    };
    for (name, base) in [("hf/lora-qwen3", "hf/qwen3"), ("hf/lora-qwen3_5-text", "hf/qwen3_5-text")] {
        let (folder, adapter) = (tempfile::tempdir().unwrap(), Adapter::read(&fixture(name), &Device::cpu()).unwrap());
        write_peft(&adapter, &fixture(base), folder.path()).unwrap();
        assert_eq!(keys(folder.path()), keys(&fixture(name)));
        let [ours, theirs] = [folder.path().to_owned(), fixture(name)].map(|folder| {
            let text = std::fs::read(folder.join("adapter_config.json")).unwrap();
            serde_json::from_slice::<Value>(&text).unwrap()
        });
        let targets = |config: &Value| {
            let names = config["target_modules"].as_array().unwrap().iter();
            names.map(|name| name.as_str().unwrap().to_owned()).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(targets(&ours), targets(&theirs));
        assert_eq!(ours["lora_alpha"].as_f64(), theirs["lora_alpha"].as_f64());
        assert_eq!((&ours["r"], &ours["use_dora"]), (&theirs["r"], &theirs["use_dora"]));
        assert!(write_peft(&adapter, &fixture(base), folder.path()).is_err());
    }
    // from mlx-lm's form and back: DoRA, and only some layers
    let folder = tempfile::tempdir().unwrap();
    let mut loaded = attached("models/qwen3_5-f32", "train/dora-qwen3_5-f32");
    let ids: Vec<u32> = (0..40).collect();
    let before = last_logits(loaded.model.as_ref(), &ids);
    let adapter = Adapter::read(&fixture("train/dora-qwen3_5-f32"), &Device::cpu()).unwrap();
    write_peft(&adapter, &fixture("models/qwen3_5-f32"), folder.path()).unwrap();
    Adapter::read(folder.path(), &Device::cpu()).unwrap().attach(loaded.model.as_mut()).unwrap();
    assert_eq!(last_logits(loaded.model.as_ref(), &ids), before);
    let experts = Adapter::read(&fixture("train/lora-qwen3_next-f32"), &Device::cpu()).unwrap();
    let error =
        write_peft(&experts, &fixture("models/qwen3_next-f32"), &folder.path().join("b")).unwrap_err().to_string();
    assert!(error.contains("stacked experts"), "{error}");
}

/// Ranks and factors by pattern, and rsLoRA.
#[test]
fn factors_of_peft_follow_its_patterns() {
    let folder = tempfile::tempdir().unwrap();
    let file = fixture("hf/lora-qwen3/adapter_model.safetensors");
    std::fs::copy(file, folder.path().join("adapter_model.safetensors")).unwrap();
    let mut config = json("hf/lora-qwen3/adapter_config.json");
    let scales = |config: &Value| {
        std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        let mut loaded = model("hf/qwen3");
        let adapter = Adapter::read(folder.path(), &Device::cpu()).map_err(|error| error.to_string())?;
        adapter.attach(loaded.model.as_mut()).unwrap();
        let mut scales = std::collections::BTreeMap::new();
        loaded.model.weights_mut("", &mut |name, _, weight| {
            if let alluvium_lm::Weight::Adapted(adapted) = weight {
                scales.insert(name.to_owned(), adapted.update().scale);
            }
        });
        Ok::<_, String>(scales)
    };
    assert!(scales(&config).unwrap().values().all(|&scale| scale == 4.0));
    config["use_rslora"] = true.into();
    assert!(scales(&config).unwrap().values().all(|&scale| scale == 8.0));
    config["alpha_pattern"] = serde_json::json!({r"layers\.[01]\.self_attn\.q_proj": 2.0, "v_proj": 32});
    let by_name = scales(&config).unwrap();
    assert_eq!(by_name["model.layers.0.self_attn.q_proj"], 1.0);
    assert_eq!(by_name["model.layers.2.self_attn.q_proj"], 8.0);
    assert_eq!(by_name["model.layers.3.self_attn.v_proj"], 16.0);
    config["rank_pattern"] = serde_json::json!({"q_proj": 2});
    assert!(scales(&config).unwrap_err().contains("has the rank 4, adapter_config.json says 2"));
    for (key, value, why) in [
        ("peft_type", Value::from("IA3"), "`peft_type` is IA3"),
        ("fan_in_fan_out", true.into(), "`fan_in_fan_out` is true"),
        ("use_dora", true.into(), "`use_dora` is true, but"),
    ] {
        let mut config = json("hf/lora-qwen3/adapter_config.json");
        config[key] = value;
        let error = scales(&config).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
