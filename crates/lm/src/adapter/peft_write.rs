//! Writing adapters in PEFT's form.

use super::peft::ADAPTER_MODEL;
use super::{ADAPTER_CONFIG, Adapter, from_layers};
use crate::formats::atomic::AtomicFile;
use crate::formats::config::Config;
use crate::formats::json::pretty;
use crate::formats::safetensors;
use alluvium_core::{Error, Result, Tensor};
use alluvium_ops::transpose;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Writes the low-rank updates of an adapter as PEFT does: `adapter_model.safetensors` and `adapter_config.json`.
/// The names
/// are those of the text model in transformers; `model` is the folder of the model.
///
/// # Errors
/// When the adapter replaces parameters, adapts experts or has several ranks or factors, which this form lacks; when
/// the folder has an adapter, or the system refuses.
pub fn write_peft(adapter: &Adapter, model: &Path, folder: &Path) -> Result<()> {
    let wrong = |why: &str| Err(adapter.error(why.to_owned()));
    if !adapter.replaced.is_empty() || adapter.updates.is_empty() {
        return wrong("it has no low-rank updates alone, and PEFT's form takes no others");
    }
    if folder.join(ADAPTER_MODEL).exists() || folder.join(ADAPTER_CONFIG).exists() {
        return Err(Error::file(folder, "it already holds an adapter; choose another folder"));
    }
    let (mut tensors, mut kinds, mut suffixes) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for (module, update) in &adapter.updates {
        if update.a.shape().rank() != 2 {
            return wrong("it adapts the stacked experts of a mixture, which PEFT's form has no names for");
        }
        let short = from_layers(module);
        let is_embedding = short == "embed_tokens";
        let root = if short == "lm_head" { "" } else { "model." };
        let prefix = format!("base_model.model.{root}{short}");
        let (a, b) = (transpose(&update.a, [0, 1])?, transpose(&update.b, [0, 1])?);
        let names = match is_embedding {
            true => [format!("{prefix}.lora_embedding_A"), format!("{prefix}.lora_embedding_B")],
            false => [format!("{prefix}.lora_A.weight"), format!("{prefix}.lora_B.weight")],
        };
        kinds.insert((a.shape()[0], update.scale.to_bits(), update.m.is_some()));
        suffixes.insert(short.rsplit('.').next().unwrap_or(short).to_owned());
        tensors.extend(names.into_iter().zip([a, b]));
        tensors.extend(update.m.clone().map(|m| (format!("{prefix}.lora_magnitude_vector"), m)));
    }
    let [(rank, scale, dora)] = kinds.into_iter().collect::<Vec<_>>()[..] else {
        return wrong("its modules differ in rank or factor");
    };
    // where not every layer is adapted, the whole names keep PEFT from adapting the others
    let layers = Config::read(model)?.text().get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0);
    let adapted: BTreeSet<&str> =
        adapter.updates.keys().filter_map(|name| from_layers(name).split('.').nth(1)).collect();
    let targets: Vec<String> = match adapted.len() as u64 >= layers {
        true => suffixes.into_iter().collect(),
        false => adapter.updates.keys().map(|name| format!("model.{}", from_layers(name))).collect(),
    };
    let config = json!({
        "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": model.display().to_string(),
        "bias": "none",
        "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
        "layer_replication": null, "layers_pattern": null, "layers_to_transform": null, "loftq_config": {},
        "lora_alpha": f64::from(f32::from_bits(scale)) * rank as f64, "lora_bias": false, "lora_dropout": 0.0,
        "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": null, "peft_type": "LORA",
        "r": rank, "rank_pattern": {}, "revision": null, "target_modules": targets, "task_type": "CAUSAL_LM",
        "use_dora": dora, "use_rslora": false,
    });
    std::fs::create_dir_all(folder).map_err(Error::io(folder, "create"))?;
    let tensors: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    let weights = safetensors::stage(&folder.join(ADAPTER_MODEL), &tensors, &[("format".to_owned(), "pt".to_owned())])?;
    let text = pretty(&config);
    let config = AtomicFile::write(&folder.join(ADAPTER_CONFIG), |out| out.write_all(text.as_bytes()))?;
    weights.commit()?;
    config.commit()
}
