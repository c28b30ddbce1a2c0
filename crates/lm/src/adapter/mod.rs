//! Adapters: low-rank updates of a model's matrices (LoRA, DoRA), or replaced parameters, in the files of mlx-lm and
//! PEFT.
//!
//! [`attach_low_rank`] begins new updates for training, [`Adapter::read`] and [`Adapter::attach`] take those of a
//! folder. An attached adapter is a [`Weight::Adapted`] in the place of the matrix, so every linear map, expert and
//! embedding of every model takes one. [`detach_adapters`] gives the model back; another adapter can follow.
//! [`AdaptedModels`] holds several at once, by name.

mod config;
mod dropout;
mod fuse;
mod low_rank;
mod named;
mod peft;
mod peft_write;

pub use config::{FineTuneType, LoraParameters};
pub use dropout::DropoutSwitch;
pub(crate) use fuse::AdaptedTensor;
pub use fuse::{Fuse, fuse};
pub(crate) use low_rank::widened;
pub use low_rank::{LowRank, Update};
pub use named::AdaptedModels;
pub use peft_write::write_peft;

use crate::formats::safetensors;
use crate::init::{Init, RandomInit, WeightSource};
use crate::model::LanguageModel;
use crate::parameters::ModuleKind;
use crate::weight::Weight;
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_ops::cast;
use dropout::Dropout;
use low_rank::{A, B, M, check_rank, row_lengths};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file of mlx-lm's adapters.
pub const ADAPTERS: &str = "adapters.safetensors";
/// The configuration beside it, and beside PEFT's.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// The tensors of a fine-tuning run, without the model that they belong to.
#[derive(Clone, Debug)]
pub struct Adapter {
    file: PathBuf,
    names: Names,
    updates: BTreeMap<String, Update>,
    /// Parameters that replace those of the model: full fine-tuning.
    replaced: BTreeMap<String, Tensor>,
}

/// How the names of an adapter's modules are those of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// The whole name.
    Whole,
    /// From the layers on: what comes before differs between the layouts of checkpoints.
    FromLayers,
}

impl Names {
    fn of(self, name: &str) -> &str {
        match self {
            Names::Whole => name,
            Names::FromLayers => from_layers(name),
        }
    }
}

/// `layers.0.mlp.gate` of `model.layers.0.mlp.gate`; outside of layers `lm_head` or `embed_tokens.weight`.
fn from_layers(name: &str) -> &str {
    let outside = || ["embed_tokens", "lm_head", "norm"].iter().find_map(|part| name.find(part)).unwrap_or(0);
    &name[name.find("layers.").unwrap_or_else(outside)..]
}

impl Adapter {
    /// Reads the adapter of a folder: `adapters.safetensors` of mlx-lm, or `adapter_model.safetensors` of PEFT.
    ///
    /// # Errors
    /// [`Kind::Io`](alluvium_core::Kind::Io) when a file cannot be read; `Kind::File` when the folder has no adapter,
    /// or one with something that is not known: names, dtypes, kinds of adapters.
    pub fn read(folder: &Path, device: &Device) -> Result<Self> {
        if folder.is_file() {
            let why = format!("it is a file, expected the folder that has it and {ADAPTER_CONFIG}");
            return Err(Error::file(folder, why));
        }
        let config = folder.join(ADAPTER_CONFIG);
        if !folder.join(ADAPTERS).exists() && folder.join(peft::ADAPTER_MODEL).exists() {
            return peft::read(folder, device);
        }
        if !folder.join(ADAPTERS).exists() {
            let why = format!("the folder has neither {ADAPTERS} (mlx-lm) nor {} (PEFT)", peft::ADAPTER_MODEL);
            return Err(Error::file(folder, why));
        }
        let (kind, parameters) = config::read(&config)?;
        Self::read_file(&folder.join(ADAPTERS), kind, parameters.as_ref(), device)
    }

    /// Tensors that replace those of a model, by the names that they have there: parameters, scales and biases. `source`
    /// is the file that errors name.
    pub fn of_tensors(source: &Path, tensors: BTreeMap<String, Tensor>) -> Self {
        Adapter { file: source.to_owned(), names: Names::Whole, updates: BTreeMap::new(), replaced: tensors }
    }

    /// Reads a file of mlx-lm whose configuration is known.
    ///
    /// # Errors
    /// As [`Adapter::read`].
    pub fn read_file(
        path: &Path,
        kind: FineTuneType,
        parameters: Option<&LoraParameters>,
        device: &Device,
    ) -> Result<Self> {
        let file = safetensors::read(path)?;
        let mut adapter =
            Adapter { file: path.to_owned(), names: Names::Whole, updates: BTreeMap::new(), replaced: BTreeMap::new() };
        if kind == FineTuneType::Full {
            for name in file.names() {
                adapter.replaced.insert(name.to_owned(), file.tensor(name, device)?);
            }
            return Ok(adapter);
        }
        let scale = parameters.map_or(LoraParameters::default().scale, |parameters| parameters.scale);
        let mut parts: BTreeMap<String, BTreeMap<&str, Tensor>> = BTreeMap::new();
        for name in file.names() {
            let Some((module, part)) = name.rsplit_once('.').filter(|(_, part)| [A, B, M].contains(part)) else {
                let why = format!("tensor `{name}` is not an adapter's; its names end in {A}, {B} or {M}");
                return Err(Error::file(path, why));
            };
            let tensor = floats(path, name, file.tensor(name, device)?)?;
            parts.entry(module.to_owned()).or_default().insert(part, tensor);
        }
        for (module, mut parts) in parts {
            let m = parts.remove(M);
            let (Some(a), Some(b)) = (parts.remove(A), parts.remove(B)) else {
                return Err(Error::file(path, format!("`{module}` lacks {A} or {B}")));
            };
            if (kind == FineTuneType::Dora) != m.is_some() {
                let why = format!(
                    "fine_tune_type is {kind}, but `{module}` has {} {M}",
                    if m.is_some() { "an" } else { "no" }
                );
                return Err(Error::file(path, why));
            }
            adapter.updates.insert(module, Update { a, b, m, scale });
        }
        Ok(adapter)
    }

    /// Attaches the adapter to a model, in the place of one that it has.
    ///
    /// # Errors
    /// `Kind::File` when a tensor has no place in the model or another shape; the model is unchanged then.
    pub fn attach(&self, model: &mut dyn LanguageModel) -> Result<()> {
        self.check_replaced(model)?;
        let mut found = BTreeMap::new();
        let mut result = Ok(());
        model.weights_mut("", &mut |name, kind, weight| {
            if let Some(update) = self.updates.get(self.names.of(name))
                && result.is_ok()
            {
                let base = base(weight);
                match LowRank::new(base, kind, update.clone()) {
                    Ok(adapted) => drop(found.insert(self.names.of(name).to_owned(), adapted)),
                    Err(error) => result = Err(self.error(format!("`{name}`: {error}; it was made for another model"))),
                }
            }
        });
        result?;
        if let Some(name) = self.updates.keys().find(|name| !found.contains_key(*name)) {
            let why = format!("the model has no module `{name}`: the adapter was made for another model");
            return Err(self.error(why));
        }
        detach_adapters(model);
        model.weights_mut("", &mut |name, _, weight| {
            if let Some(adapted) = found.remove(self.names.of(name)) {
                *weight = Weight::Adapted(Box::new(adapted));
            }
        });
        let mut result = Ok(());
        model.visit_mut("", &mut |name, slot| {
            if let Some(tensor) = self.replaced.get(self.names.of(&name)) {
                match tensor.dtype() == DType::F32 || slot.dtype() != DType::F32 {
                    true => *slot = tensor.clone(),
                    false => match cast(tensor, DType::F32) {
                        Ok(tensor) => *slot = tensor,
                        Err(error) => result = Err(error),
                    },
                }
            }
        });
        result
    }

    fn check_replaced(&self, model: &dyn LanguageModel) -> Result<()> {
        let mut left = self.replaced.clone();
        let mut result = Ok(());
        model.visit("", &mut |name, tensor| {
            if let Some(new) = left.remove(self.names.of(&name))
                && (new.shape() != tensor.shape() || new.dtype().is_float() != tensor.dtype().is_float())
                && result.is_ok()
            {
                let why = format!("`{name}` is {}, the model has {}", new.shape(), tensor.shape());
                result = Err(self.error(why));
            }
        });
        result?;
        match left.keys().next() {
            Some(name) => {
                Err(self.error(format!("the model has no tensor `{name}`: the file was made for another model")))
            }
            None => Ok(()),
        }
    }

    fn error(&self, why: String) -> Error {
        Error::file(&self.file, why)
    }

    /// The tensors by the names that they have in a model with this adapter.
    pub fn tensors(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let updates = self.updates.iter().flat_map(|(module, update)| {
            let parts = [(A, Some(&update.a)), (B, Some(&update.b)), (M, update.m.as_ref())];
            parts.into_iter().filter_map(move |(part, tensor)| Some((format!("{module}.{part}"), tensor?)))
        });
        updates.chain(self.replaced.iter().map(|(name, tensor)| (name.clone(), tensor)))
    }

    /// The number of adapted modules and replaced parameters.
    pub fn len(&self) -> usize {
        self.updates.len() + self.replaced.len()
    }

    /// Whether nothing is adapted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A tensor of an adapter, widened to f32.
fn floats(path: &Path, name: &str, tensor: Tensor) -> Result<Tensor> {
    match tensor.dtype() {
        DType::F32 => Ok(tensor),
        dtype if dtype.is_float() => cast(&tensor, DType::F32),
        dtype => Err(Error::file(path, format!("tensor `{name}` is {dtype}, expected F32, F16 or BF16"))),
    }
}

/// The frozen matrix of a module.
fn base(weight: &Weight) -> Weight {
    match weight {
        Weight::Adapted(adapted) => adapted.base().clone(),
        plain => plain.clone(),
    }
}

/// Removes the updates of all modules and returns their number. Replaced parameters stay.
pub fn detach_adapters(model: &mut dyn LanguageModel) -> usize {
    let mut count = 0;
    model.weights_mut("", &mut |_, _, weight| {
        if let Weight::Adapted(adapted) = weight {
            *weight = adapted.base().clone();
            count += 1;
        }
    });
    count
}

/// The number of a module's layer, and its name within the layer: `model.layers.3.mlp.gate` is `(3, "mlp.gate")`.
fn layer_of(name: &str) -> Option<(usize, &str)> {
    let (_, rest) = name.split_once("layers.")?;
    let (number, key) = rest.split_once('.')?;
    Some((number.parse().ok()?, key))
}

/// Whether a parameter or module is in one of the last `num_layers` layers of `layers`; 0 and less mean all.
pub fn is_in_last_layers(name: &str, num_layers: i64, layers: usize) -> bool {
    let count = usize::try_from(num_layers).ok().filter(|&count| count > 0).unwrap_or(layers);
    layer_of(name).is_some_and(|(layer, _)| layer + count >= layers)
}

/// Begins an update in each module that `keys` names, as mlx-lm does: `lora_a` is random, `lora_b` zero, so the model
/// computes what it did. Returns the names of the modules.
///
/// Without `keys` these are all projections, experts and embeddings of the last `num_layers` layers (all layers where
/// it is 0 or less). A key is the name of a module within a layer (`self_attn.q_proj`) or in the model (`lm_head`).
///
/// # Errors
/// When a key names no module, there are fewer layers, the rank is above a matrix's sides, or DoRA is asked for of
/// experts.
pub fn attach_low_rank(
    model: &mut dyn LanguageModel,
    kind: FineTuneType,
    parameters: &LoraParameters,
    num_layers: i64,
    seed: u64,
) -> Result<Vec<String>> {
    let layers = model.cache_shapes().len();
    if num_layers > layers as i64 {
        let why = format!("num_layers is {num_layers}, the model has {layers} layers; give {layers}, or -1 for all");
        return Err(Error::value("adapter", why));
    }
    let switch = DropoutSwitch::default();
    let begin = Begin { kind, parameters, seed, device: model.device().clone(), switch };
    let mut unused: Vec<&str> = parameters.keys.iter().flatten().map(String::as_str).collect();
    let (mut names, mut result) = (Vec::new(), Ok(()));
    detach_adapters(model);
    model.weights_mut("", &mut |name, module_kind, weight| {
        let in_layer = layer_of(name).filter(|_| is_in_last_layers(name, num_layers, layers)).map(|(_, key)| key);
        let is_wanted = match &parameters.keys {
            None => in_layer.is_some(),
            Some(keys) => keys.iter().any(|key| Some(key.as_str()) == in_layer || key == name),
        };
        unused.retain(|&key| Some(key) != layer_of(name).map(|(_, key)| key) && key != name);
        if is_wanted && result.is_ok() {
            match begin.low_rank(name, module_kind, weight) {
                Ok(adapted) => {
                    *weight = Weight::Adapted(Box::new(adapted));
                    names.push(name.to_owned());
                }
                Err(error) => result = Err(Error::value("adapter", format!("`{name}`: {error}"))),
            }
        }
    });
    result?;
    match (unused.first(), names.is_empty()) {
        (Some(key), _) => Err(Error::value("adapter", format!("the model has no module `{key}`, which `keys` names"))),
        (None, true) => Err(Error::value("adapter", "no module is adapted; check `keys` and num_layers")),
        _ => Ok(names),
    }
}

/// The switch of the dropout of a model's updates, which is off; `None` where they have none.
pub fn dropout_switch(model: &mut dyn LanguageModel) -> Option<DropoutSwitch> {
    let mut switch = None;
    model.weights_mut("", &mut |_, _, weight| {
        if let Weight::Adapted(adapted) = weight {
            switch = switch.take().or_else(|| adapted.dropout_switch().cloned());
        }
    });
    switch
}

/// The settings of new updates.
struct Begin<'a> {
    kind: FineTuneType,
    parameters: &'a LoraParameters,
    seed: u64,
    device: Device,
    switch: DropoutSwitch,
}

impl Begin<'_> {
    fn low_rank(&self, name: &str, kind: ModuleKind, weight: &Weight) -> Result<LowRank> {
        let (shape, r) = (weight.shape(), self.parameters.rank);
        check_rank(r, weight)?;
        let (a, b, inner) = match kind {
            ModuleKind::Linear => (Shape::from([shape[1], r]), Shape::from([r, shape[0]]), shape[1]),
            ModuleKind::Experts => ([shape[0], r, shape[2]].into(), [shape[0], shape[1], r].into(), shape[2]),
            ModuleKind::Embedding => ([shape[0], r].into(), [r, shape[1]].into(), shape[0]),
        };
        let bound = (inner as f64).sqrt().recip();
        let mut source = RandomInit { seed: self.seed, device: self.device.clone() };
        let a = source.tensor(&format!("{name}.{A}"), a, Init::Uniform(bound))?;
        let b = Tensor::zeros(b, DType::F32, &self.device)?;
        let m = match self.kind {
            FineTuneType::Dora => Some(row_lengths(weight, &self.device)?),
            _ => None,
        };
        let p = self.parameters.dropout;
        let dropout = (p > 0.0).then(|| Dropout::new(p, self.seed, name, &self.switch));
        let update = Update { a, b, m, scale: self.parameters.scale };
        Ok(LowRank::new(weight.clone(), kind, update)?.with_dropout(dropout))
    }
}
