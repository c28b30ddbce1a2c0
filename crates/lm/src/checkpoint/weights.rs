//! The weights of a folder, as a model asks for them.

use super::folder::Folder;
use super::fp8;
use crate::formats::config::Config;
use crate::init::{Init, WeightSource};
use crate::models::ModelType;
use crate::models::sanitize::{Transform, WeightMap};
use crate::parameters::{Parameter, Role};
use crate::quantize::format::{Quantization, infer, misfit, parts};
use crate::weight::Weight;
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_ops::{Packing, cast};
use std::path::Path;

/// The weight files of a folder as a [`WeightSource`]: tensors are read when the model asks for them.
pub(crate) struct Weights {
    folder: Folder,
    quantization: Quantization,
    /// Transforms of tensors that were not yet asked for.
    left: WeightMap,
    device: Device,
    /// As [`LoadOptions::join_projections`](super::LoadOptions).
    pub(super) join_projections: bool,
}

/// The stored tensors of a module's matrix.
#[derive(Clone, Debug)]
pub(crate) enum Matrix {
    Plain(Transform),
    Packed { w: Transform, scales: Transform, biases: Option<Transform>, packing: Packing },
}

impl Matrix {
    /// The format of a quantized matrix; `None` for a dense one.
    pub(crate) fn packing(&self) -> Option<Packing> {
        match self {
            Matrix::Plain(_) => None,
            Matrix::Packed { packing, .. } => Some(*packing),
        }
    }
}

impl Weights {
    /// Opens a folder. What its configuration leaves open is settled by the tensors that it has.
    pub(crate) fn open(folder: &Path, config: &mut Config, model_type: &ModelType, device: &Device) -> Result<Self> {
        let mut folder = Folder::open(folder)?;
        if folder.has_fp8() {
            folder.read_fp8(config.dtype().unwrap_or(DType::BF16), fp8_block(config)?);
        }
        settle_head(config, model_type, &folder)?;
        let left = model_type.weight_map(&folder.stored(), config)?;
        let quantization = Quantization::read(config)?;
        Ok(Weights { folder, quantization, left, device: device.clone(), join_projections: false })
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Errs when there are tensors that the model did not ask for.
    pub(crate) fn finish(&self) -> Result<()> {
        let Some(transform) = self.left.values().next() else { return Ok(()) };
        let more = match self.left.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let name = stored(transform);
        let why = format!("tensor `{name}`{more} has no place in the model that config.json describes");
        Err(Error::file(self.folder.place(name), why))
    }

    /// The transform of a floating-point tensor of this shape.
    pub(crate) fn tensor(&mut self, name: &str, shape: Shape) -> Result<Transform> {
        let transform = self.take(name, shape)?;
        let (dtype, found) = self.folder.describe(&transform)?;
        if !dtype.is_float() {
            return Err(self.error(&transform, format!("{dtype}, expected F32, F16 or BF16")));
        }
        if found != shape {
            return Err(self.error(&transform, format!("{found}, config.json asks for {shape}")));
        }
        Ok(transform)
    }

    /// The transforms of a module's matrix of this shape.
    pub(crate) fn matrix(&mut self, module: &str, shape: Shape) -> Result<Matrix> {
        let [weight, scales, biases] = parts(module);
        let said = self.quantization.modules.get(module).copied();
        match said {
            Some(None) => return self.tensor(&weight, shape).map(Matrix::Plain),
            None if !self.left.contains_key(&scales) => {
                let packed =
                    self.left.get(&weight).is_some_and(|r| self.folder.describe(r).is_ok_and(|d| d.0.name() == "U32"));
                if packed {
                    let why = format!("its weight is packed, but `{scales}` is missing");
                    return Err(misfit(self.folder.place(&weight), module, why));
                }
                return self.tensor(&weight, shape).map(Matrix::Plain);
            }
            _ => {}
        }
        let (inner, rows) = (shape.last(), &shape[..shape.rank() - 1]);
        let scales = self.take(&scales, shape)?;
        let w = self.take(&weight, shape)?;
        let (dtype, packed) = self.folder.describe(&w)?;
        if dtype.name() != "U32" {
            return Err(self.error(&w, format!("{dtype}, expected U32: it has scales")));
        }
        let (kind, groups) = self.folder.describe(&scales)?;
        let place = self.folder.place(stored(&w));
        let found =
            infer(inner, packed.last(), groups.last(), kind.name()).map_err(|why| misfit(place, module, why))?;
        let packing = said.flatten().unwrap_or(found);
        if packing != found {
            let why = format!("config.json says {packing:?}, its tensors are {found:?}");
            return Err(misfit(place, module, why));
        }
        for (name, shape) in [(&w, packed), (&scales, groups)] {
            if shape[..shape.rank().saturating_sub(1)] != *rows {
                return Err(self.error(name, format!("{shape}, config.json asks for rows of {rows:?}")));
            }
        }
        let biases = match packing {
            Packing::Affine { .. } => {
                let biases = self.take(&biases, groups)?;
                let (other, shape) = self.folder.describe(&biases)?;
                if (other, shape) != (kind, groups) {
                    return Err(self.error(&biases, format!("{other} {shape}, its scales are {kind} {groups}")));
                }
                if !kind.is_float() {
                    return Err(self.error(&scales, format!("{kind}, expected F32, F16 or BF16")));
                }
                Some(biases)
            }
            _ => None,
        };
        Ok(Matrix::Packed { w, scales, biases, packing })
    }

    /// Reads what a transform makes.
    pub(crate) fn read(&self, transform: &Transform) -> Result<Tensor> {
        self.folder.tensor(transform, &self.device)
    }

    /// Reads a matrix as it is stored.
    pub(crate) fn read_matrix(&self, matrix: &Matrix) -> Result<Weight> {
        Ok(match matrix {
            Matrix::Plain(transform) => Weight::Dense(self.read(transform)?.into()),
            Matrix::Packed { w, scales, biases, packing } => Weight::Quantized {
                w: self.read(w)?.into(),
                scales: frozen(self.read(scales)?),
                biases: biases.as_ref().map(|biases| self.read(biases).map(frozen)).transpose()?,
                packing: *packing,
            },
        })
    }

    fn take(&mut self, name: &str, shape: Shape) -> Result<Transform> {
        self.left.remove(name).ok_or_else(|| {
            let fetch = self.folder.fetch(name);
            let why = format!("tensor `{name}` {shape} is missing; config.json asks for it{fetch}");
            Error::file(self.folder.place(name), why)
        })
    }

    fn error(&self, transform: &Transform, why: String) -> Error {
        let name = stored(transform);
        Error::file(self.folder.place(name), format!("tensor `{name}` is {why}"))
    }
}

/// Says in a configuration whether the embedding is the output projection: where `tie_word_embeddings` is missing, or
/// differs between the top and `text_config`, an `lm_head` decides.
fn settle_head(config: &mut Config, model_type: &ModelType, folder: &Folder) -> Result<()> {
    let [outer, inner] = config.ties()?;
    let find = |end: &str| folder.names().find(|name| name.ends_with(end) && !name.contains("mtp."));
    let head = find("lm_head.weight");
    let said = outer.or(inner).filter(|&outer| inner.is_none_or(|inner| inner == outer));
    let is_tied = said.unwrap_or(head.is_none());
    if let (true, Some(head), Some(table)) = (is_tied, head, find("embed_tokens.weight"))
        && !folder.are_equal(head, table)?
    {
        let why = format!("`tie_word_embeddings` is true, but `{head}` differs from `{table}`");
        return Err(config.error(format!("{why}; set the key to false to use it, or remove the tensor")));
    }
    let fetch = folder.fetch("lm_head.weight");
    if !is_tied && head.is_none() && fetch.is_empty() {
        let why =
            "`tie_word_embeddings` is false, but no file has an `lm_head.weight`: the checkpoint has no output head";
        let advice = "fetch the one for causal language modeling, or set the key to true if the embedding is the head";
        return Err(config.error(format!("{why}; {advice}")));
    }
    if said.is_none() && (outer.is_some() || is_tied != model_type.tie_word_embeddings) {
        config.set_tied(is_tied);
    }
    Ok(())
}

/// Rows and columns that share a scale in fp8, as `weight_block_size` says.
fn fp8_block(config: &Config) -> Result<[usize; 2]> {
    let block = |part: &serde_json::Map<String, serde_json::Value>| {
        part.get("quantization_config")?.get("weight_block_size").cloned()
    };
    let Some(said) = block(config.json()).or_else(|| block(config.text())).filter(|said| !said.is_null()) else {
        return Ok(fp8::BLOCK);
    };
    match serde_json::from_value::<[usize; 2]>(said.clone()) {
        Ok(block) if block.iter().all(|n| (1..=1 << 20).contains(n)) => Ok(block),
        _ => Err(config.error(format!("`weight_block_size` is {said}, expected two positive integers"))),
    }
}

/// Scales and biases of a quantized weight are not trained unless they are made trainable.
fn frozen(tensor: Tensor) -> Parameter {
    Parameter::new(tensor, Role::Frozen)
}

fn stored(transform: &Transform) -> &str {
    transform.stored().first().map_or("", String::as_str)
}

impl WeightSource for Weights {
    fn tensor(&mut self, name: &str, shape: Shape, _: Init) -> Result<Tensor> {
        let transform = Weights::tensor(self, name, shape)?;
        match self.read(&transform)? {
            tensor if tensor.dtype() == DType::F32 => Ok(tensor),
            half => cast(&half, DType::F32),
        }
    }

    fn weight(&mut self, module: &str, shape: Shape, _: Init) -> Result<Weight> {
        let matrix = self.matrix(module, shape)?;
        self.read_matrix(&matrix)
    }

    fn joins_projections(&self) -> bool {
        self.join_projections
    }
}
