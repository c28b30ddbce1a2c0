//! Adapters of PEFT: `adapter_model.safetensors` and its `adapter_config.json`.

use super::config::read_json;
use super::{ADAPTER_CONFIG, Adapter, Names, Update, floats, from_layers};
use crate::formats::safetensors;
use alluvium_core::{Device, Error, Result, Tensor};
use alluvium_ops::{concat, transpose};
use fancy_regex::Regex;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The file of an adapter's tensors.
pub(super) const ADAPTER_MODEL: &str = "adapter_model.safetensors";

/// The keys that change the arithmetic. Those that only direct the training are not read.
#[derive(Debug, Deserialize)]
struct PeftConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    lora_bias: bool,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
}

impl PeftConfig {
    fn read(path: &Path) -> Result<Self> {
        let json = serde_json::Value::Object(read_json(path)?);
        let config: Self =
            serde_json::from_value(json).map_err(|error| Error::file(path, format!("it is not PEFT's: {error}")))?;
        let wrong = |why: String| Err(Error::file(path, why));
        if config.peft_type != "LORA" {
            return wrong(format!("`peft_type` is {}, expected LORA", config.peft_type));
        }
        for (key, is_set) in [("fan_in_fan_out", config.fan_in_fan_out), ("lora_bias", config.lora_bias)] {
            if is_set {
                return wrong(format!("`{key}` is true, which is not supported"));
            }
        }
        Ok(config)
    }

    /// The factor of a module's update. The patterns are regular expressions for the end of the module's name.
    fn scale(&self, path: &Path, module: &str, rank: usize) -> Result<f32> {
        let mut alpha = self.lora_alpha;
        for (pattern, value) in &self.alpha_pattern {
            if matches(path, pattern, module)? {
                alpha = *value;
                break;
            }
        }
        let mut expected = self.r;
        for (pattern, value) in &self.rank_pattern {
            if matches(path, pattern, module)? {
                expected = *value;
                break;
            }
        }
        if rank != expected {
            let why = format!("`{module}` has the rank {rank}, {ADAPTER_CONFIG} says {expected}");
            return Err(Error::file(path, why));
        }
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((alpha / divisor) as f32)
    }
}

fn matches(path: &Path, pattern: &str, module: &str) -> Result<bool> {
    let wrong = |error: fancy_regex::Error| Error::file(path, format!("the pattern `{pattern}`: {error}"));
    let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).map_err(wrong)?;
    regex.is_match(module).map_err(wrong)
}

/// The tensors of one module.
#[derive(Default)]
struct Parts {
    a: Option<Tensor>,
    b: Option<Tensor>,
    m: Option<Tensor>,
}

/// Reads the adapter of a folder.
pub(super) fn read(folder: &Path, device: &Device) -> Result<Adapter> {
    let path = folder.join(ADAPTER_MODEL);
    let config = PeftConfig::read(&folder.join(ADAPTER_CONFIG))?;
    let file = safetensors::read(&path)?;
    let (mut modules, mut replaced) = (BTreeMap::<String, Parts>::new(), BTreeMap::new());
    for name in file.names() {
        let short = name.strip_prefix("base_model.model.").unwrap_or(name);
        let short = short.strip_suffix(".weight").unwrap_or(short);
        let tensor = || floats(&path, name, file.tensor(name, device)?);
        let (module, part) = short.rsplit_once('.').unwrap_or(("", short));
        let parts = modules.entry(module.to_owned()).or_default();
        match part {
            "lora_A" | "lora_embedding_A" => parts.a = Some(transpose(&tensor()?, [0, 1])?),
            "lora_B" | "lora_embedding_B" => parts.b = Some(transpose(&tensor()?, [0, 1])?),
            "lora_magnitude_vector" => parts.m = Some(tensor()?),
            "lm_head" | "embed_tokens" if name.ends_with(".weight") => {
                modules.remove(module);
                replaced.insert(format!("{part}.weight"), tensor()?);
            }
            _ => {
                let why =
                    format!("tensor `{name}` is not supported; LoRA and DoRA tensors, lm_head and embed_tokens are");
                return Err(Error::file(&path, why));
            }
        }
    }
    let mut updates = BTreeMap::new();
    for (module, Parts { a, b, m }) in modules {
        let (Some(a), Some(b)) = (a, b) else {
            return Err(Error::file(&path, format!("`{module}` lacks lora_A or lora_B")));
        };
        if config.use_dora != m.is_some() {
            let has = if m.is_some() { "a" } else { "no" };
            let why = format!("`use_dora` is {}, but `{module}` has {has} magnitude", config.use_dora);
            return Err(Error::file(&path, why));
        }
        let scale = config.scale(&path, &module, a.shape().last())?;
        let m = m.map(|m| m.reshape([m.elements()])).transpose()?;
        updates.insert(from_layers(&module).to_owned(), Update { a, b, m, scale });
    }
    let updates = stack_experts(&path, updates)?;
    Ok(Adapter { file: path, names: Names::FromLayers, updates, replaced })
}

/// The updates of single experts as one for all experts of a layer, as MLX stores them.
fn stack_experts(path: &Path, updates: BTreeMap<String, Update>) -> Result<BTreeMap<String, Update>> {
    let (mut all, mut stacks) = (BTreeMap::new(), BTreeMap::<String, BTreeMap<usize, Update>>::new());
    for (module, update) in updates {
        match expert_of(&module) {
            Some((stack, expert)) => drop(stacks.entry(stack).or_default().insert(expert, update)),
            None => drop(all.insert(module, update)),
        }
    }
    for (module, experts) in stacks {
        if experts.keys().copied().ne(0..experts.len()) {
            return Err(Error::file(path, format!("`{module}`: not all experts have an update")));
        }
        let scale = experts.values().next().map_or(0.0, |update| update.scale);
        if experts.values().any(|update| update.scale != scale || update.m.is_some()) {
            let why = format!("`{module}`: its experts must share one factor, and DoRA does not adapt experts");
            return Err(Error::file(path, why));
        }
        // [I, r] of an expert is [1, r, I] of the stack
        let stacked = |part: &dyn Fn(&Update) -> &Tensor| -> Result<Tensor> {
            let one = |update: &Update| {
                let turned = transpose(part(update), [0, 1])?;
                turned.reshape([1, turned.shape()[0], turned.shape()[1]])
            };
            let parts = experts.values().map(one).collect::<Result<Vec<Tensor>>>()?;
            concat(&parts.iter().collect::<Vec<_>>(), 0)
        };
        let (a, b) = (stacked(&|update| &update.a)?, stacked(&|update| &update.b)?);
        all.insert(module, Update { a, b, m: None, scale });
    }
    Ok(all)
}

/// `layers.0.mlp.switch_mlp.up_proj` and 3 of `layers.0.mlp.experts.3.up_proj`.
fn expert_of(module: &str) -> Option<(String, usize)> {
    let (layer, rest) = module.split_once(".experts.")?;
    let (expert, projection) = rest.split_once('.')?;
    Some((format!("{layer}.switch_mlp.{projection}"), expert.parse().ok()?))
}
