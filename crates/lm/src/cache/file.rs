//! A cache in a file, as mlx-lm's `cache_prompt` writes it: what a model remembers of a prompt, to go on from.
//!
//! Tensors are named `<layer>.<slot>`: of a linear layer `N.0.0` is the window `[1, K-1, C]` and `N.0.1` the state `[1,
//! G, V, K]`; of an attention layer `N.0` and `N.1` are keys and values `[1, G, S, D]`, `N.2` is how many of the `S`
//! are filled.

use super::{AttentionCache, Cache, CacheShape, DeltaCache, KvBuffer, LayerCache};
use crate::formats::atomic::write_atomic;
use crate::formats::safetensors::{self, File, StoredDtype, TensorSpec};
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_ops::{cast, transpose};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Writes the cache of one sequence; `about` is free text, in which mlx-lm looks for `model` and `tokenizer_config`.
///
/// # Errors
/// When the cache has more sequences than one or has read nothing, or the system refuses.
pub fn save_prompt_cache(path: &Path, cache: &Cache, about: &BTreeMap<String, String>) -> Result<()> {
    if cache.offsets().len() != 1 || cache.offset() == 0 {
        return Err(Error::value("prompt cache", "a cache of one sequence that has read something is needed"));
    }
    let mut entries = Vec::new();
    let mut metadata: Vec<(String, String)> = about.iter().map(|(k, v)| (format!("0.{k}"), v.clone())).collect();
    let mut scalars = vec![];
    for (index, layer) in cache.layers.iter().enumerate() {
        match layer {
            LayerCache::Delta(delta) => {
                for (slot, part) in [&delta.conv_state, &delta.recurrent_state].into_iter().enumerate() {
                    let name = format!("{index}.0.{slot}");
                    match part {
                        Some(part) => entries.push(raw(name, part)?),
                        None => scalars.push((name, "none")),
                    }
                }
                scalars.extend([(format!("{index}.1"), "none"), (format!("{index}.2"), "none")]);
                metadata.push((format!("1.{index}"), "ArraysCache".to_owned()));
            }
            LayerCache::Attention(attention) => {
                let [KvBuffer { keys: Some(keys), values: Some(values), len }] = attention.sequences() else {
                    return Err(Error::value("prompt cache", "an attention layer has read nothing"));
                };
                entries.push(raw(format!("{index}.0"), &by_head(keys)?)?);
                entries.push(raw(format!("{index}.1"), &by_head(values)?)?);
                let len = i32::try_from(*len).map_err(|_| Error::value("prompt cache", "it is too long"))?;
                let spec = TensorSpec { name: format!("{index}.2"), dtype: StoredDtype::I32, shape: Shape::new(&[])? };
                entries.push((spec, len.to_le_bytes().to_vec()));
                scalars.push((format!("{index}.2"), "scalar"));
                metadata.push((format!("1.{index}"), "KVCache".to_owned()));
            }
        }
    }
    for (name, _) in scalars.iter().filter(|(_, kind)| *kind == "none") {
        let spec = TensorSpec { name: name.clone(), dtype: DType::F32.into(), shape: Shape::new(&[0])? };
        entries.push((spec, Vec::new()));
    }
    metadata.push(("2.0".to_owned(), String::new()));
    for (i, (name, kind)) in scalars.into_iter().enumerate() {
        metadata.push((format!("2.{}.0", i + 1), name));
        metadata.push((format!("2.{}.1", i + 1), kind.to_owned()));
    }
    let header = safetensors::write_header(path, entries.iter().map(|(spec, _)| spec), &metadata)?;
    write_atomic(path, |out| {
        out.write_all(&header)?;
        entries.iter().try_for_each(|(_, bytes)| out.write_all(bytes))
    })
}

/// A tensor's spec and bytes.
fn raw(name: String, tensor: &Tensor) -> Result<(TensorSpec, Vec<u8>)> {
    Ok((TensorSpec::of(name, tensor), tensor.to_bytes()?))
}

/// `[S, G, D]` as `[1, G, S, D]`.
fn by_head(x: &Tensor) -> Result<Tensor> {
    let y = transpose(x, [0, 1])?;
    y.reshape([1, y.shape()[0], y.shape()[1], y.shape()[2]])
}

/// Reads a cache whose layers have these shapes, for a model that computes in `dtype`, and the free text that was written
/// with it. Recurrent states are f32.
///
/// # Errors
/// When the file cannot be read, or its cache is none of this model or of a kind that is not known: every layer must
/// have its tensors, of the model's sizes, and there must be no others.
pub fn load_prompt_cache(
    path: &Path,
    shapes: &[CacheShape],
    dtype: DType,
    device: &Device,
) -> Result<(Cache, BTreeMap<String, String>)> {
    let file = safetensors::read(path)?;
    let mut about = BTreeMap::new();
    for (key, value) in file.metadata() {
        if let Some(key) = key.strip_prefix("0.") {
            about.insert(key.to_owned(), value.clone());
        }
    }
    let mut reader = Reader { file: &file, dtype, device, asked: BTreeSet::new() };
    let layers = file.metadata().keys().filter(|key| key.starts_with("1.")).count();
    if layers != shapes.len() {
        let why = format!("it is the cache of a model with {layers} layers, this one has {}", shapes.len());
        return Err(reader.error(why));
    }
    let (mut offset, mut read) = (None, Vec::new());
    for (index, &shape) in shapes.iter().enumerate() {
        let class = file.metadata().get(&format!("1.{index}")).map_or("", String::as_str);
        read.push(match (shape, class) {
            (CacheShape::Delta { conv_state, recurrent_state }, "ArraysCache") => {
                LayerCache::Delta(reader.delta(index, conv_state, recurrent_state)?)
            }
            (CacheShape::Attention { kv_heads, head_dim }, "KVCache") => {
                let sequence = reader.attention(index, kv_heads, head_dim)?;
                let first = *offset.get_or_insert(sequence.len);
                if sequence.len != first || first == 0 {
                    let why = format!("layer {index} has read {} tokens, an earlier one {first}", sequence.len);
                    return Err(reader.error(why));
                }
                LayerCache::Attention(AttentionCache::of(sequence))
            }
            (_, class) => {
                return Err(reader.error(format!("layer {index} is a {class}, which is none of this model's")));
            }
        });
    }
    reader.finish()?;
    Ok((Cache::at(offset.unwrap_or(0), read), about))
}

struct Reader<'a> {
    file: &'a File,
    /// That of keys, values and convolution states.
    dtype: DType,
    device: &'a Device,
    /// The names of the tensors that the model's layers have.
    asked: BTreeSet<String>,
}

impl Reader<'_> {
    /// The error that says of which model the file is, where it does.
    fn error(&self, why: String) -> Error {
        let of = self.file.metadata().get("0.model").map_or(String::new(), |of| format!("; it was made with `{of}`"));
        Error::file(self.file.path(), format!("{why}{of}"))
    }

    /// A floating tensor of this shape, in `dtype`.
    fn tensor(&mut self, name: String, want: Shape, dtype: DType) -> Result<Tensor> {
        let entry = self.file.entry(&name).filter(|entry| entry.bytes > 0);
        let Some(entry) = entry else {
            return Err(self.error(format!("tensor `{name}` is missing; this model's cache has it as {want}")));
        };
        if !entry.dtype.is_float() || entry.shape != want {
            let why = format!("tensor `{name}` is {} {}, that of this model's cache {want}", entry.dtype, entry.shape);
            return Err(self.error(why));
        }
        let tensor = cast(&self.file.tensor(&name, self.device)?, dtype)?;
        self.asked.insert(name);
        Ok(tensor)
    }

    /// The window and the state, and what else mlx-lm has of a batch: nothing of one sequence.
    fn delta(&mut self, index: usize, conv_state: Option<Shape>, state: Shape) -> Result<DeltaCache> {
        let empty = |name: &String| self.file.entry(name).is_some_and(|entry| entry.bytes == 0);
        let without = [format!("{index}.0.0"), format!("{index}.1"), format!("{index}.2")];
        self.asked.extend(without.into_iter().filter(empty));
        let window = |shape| self.tensor(format!("{index}.0.0"), shape, self.dtype);
        let conv_state = conv_state.map(window).transpose()?;
        let state = self.tensor(format!("{index}.0.1"), state, DType::F32)?;
        Ok(DeltaCache { conv_state, recurrent_state: Some(state) })
    }

    fn attention(&mut self, index: usize, kv_heads: usize, head_dim: usize) -> Result<KvBuffer> {
        let len = self.len(index)?;
        let name = |slot: usize| format!("{index}.{slot}");
        let room = self.file.entry(&name(0)).and_then(|keys| keys.shape.get(2).copied()).unwrap_or(len);
        if len > room {
            return Err(self.error(format!("layer {index} has read {len} tokens, its keys are of {room}")));
        }
        let want: Shape = [1, kv_heads, room, head_dim].into();
        let [keys, values] = [self.tensor(name(0), want, self.dtype)?, self.tensor(name(1), want, self.dtype)?];
        let by_token = |x: &Tensor| transpose(&x.reshape(Shape::new(&x.shape()[1..])?)?, [0, 1]);
        Ok(KvBuffer { keys: Some(by_token(&keys)?), values: Some(by_token(&values)?), len })
    }

    /// Errs where there are tensors that no layer of the model has.
    fn finish(&self) -> Result<()> {
        match self.file.names().find(|name| !self.asked.contains(*name)) {
            Some(name) => Err(self.error(format!("tensor `{name}` has no place in this model's cache"))),
            None => Ok(()),
        }
    }

    /// How many tokens an attention layer has read.
    fn len(&mut self, index: usize) -> Result<usize> {
        let name = format!("{index}.2");
        let wrong = || self.error(format!("`{name}` is no count of tokens"));
        let entry = self
            .file
            .entry(&name)
            .filter(|entry| entry.dtype == StoredDtype::I32 && entry.bytes == 4)
            .ok_or_else(wrong)?;
        let mut bytes = [0; 4];
        self.file.read_into(entry, 0, &mut bytes)?;
        let len = usize::try_from(i32::from_le_bytes(bytes)).map_err(|_| wrong())?;
        self.asked.insert(name);
        Ok(len)
    }
}
