//! A cache in a file, as mlx-lm's `cache_prompt` writes it: what a model remembers of a prompt, to go on from.
//!
//! Tensors are named `<layer>.<slot>`: of a linear layer `N.0.0` is the window `[1, K-1, C]` and `N.0.1` the state `[1, G, V, K]`;
//! of an attention layer `N.0` and `N.1` are keys and values `[1, G, S, D]`, `N.2` is how many of the `S` are filled.

use super::atomic::write_atomic;
use super::safetensors::{self, File, Raw};
use crate::cache::{AttentionCache, Cache, DeltaCache, KeysAndValues, LayerCache};
use crate::models::LanguageModel;
use alluvium_core::{DType, Error, Result, Shape, Tensor};
use alluvium_ops::{cast, transpose};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the cache of one sequence; `about` is free text, in which mlx-lm looks for `model` and `tokenizer_config`.
///
/// # Errors
/// When the cache has more sequences than one or has read nothing, or the system refuses.
pub fn save(path: &Path, cache: &Cache, about: &BTreeMap<String, String>) -> Result<()> {
    if cache.offsets().len() != 1 || cache.offset() == 0 {
        return Err(Error::value("prompt cache", "a cache of one sequence that has read something is needed"));
    }
    let mut entries = Vec::new();
    let mut metadata: Vec<(String, String)> = about.iter().map(|(k, v)| (format!("0.{k}"), v.clone())).collect();
    let mut scalars = vec![];
    for (index, layer) in cache.layers.iter().enumerate() {
        match layer {
            LayerCache::Delta(delta) => {
                for (slot, part) in [&delta.window, &delta.state].into_iter().enumerate() {
                    let name = format!("{index}.0.{slot}");
                    match part {
                        Some(part) => entries.push(Raw::of(name, part)?),
                        None => scalars.push((name, "none")),
                    }
                }
                scalars.extend([(format!("{index}.1"), "none"), (format!("{index}.2"), "none")]);
                metadata.push((format!("1.{index}"), "ArraysCache".to_owned()));
            }
            LayerCache::Attention(attention) => {
                let [KeysAndValues { keys: Some(keys), values: Some(values), len }] = attention.sequences() else {
                    return Err(Error::value("prompt cache", "an attention layer has read nothing"));
                };
                entries.push(Raw::of(format!("{index}.0"), &by_head(keys)?)?);
                entries.push(Raw::of(format!("{index}.1"), &by_head(values)?)?);
                let len = i32::try_from(*len).map_err(|_| Error::value("prompt cache", "it is too long"))?;
                entries.push(Raw {
                    name: format!("{index}.2"),
                    dtype: "I32",
                    shape: vec![],
                    bytes: len.to_le_bytes().into(),
                });
                scalars.push((format!("{index}.2"), "scalar"));
                metadata.push((format!("1.{index}"), "KVCache".to_owned()));
            }
        }
    }
    for (name, _) in scalars.iter().filter(|(_, kind)| *kind == "none") {
        entries.push(Raw { name: name.clone(), dtype: "F32", shape: vec![0], bytes: Vec::new() });
    }
    metadata.push(("2.0".to_owned(), String::new()));
    for (i, (name, kind)) in scalars.into_iter().enumerate() {
        metadata.push((format!("2.{}.0", i + 1), name));
        metadata.push((format!("2.{}.1", i + 1), kind.to_owned()));
    }
    let header = safetensors::header(path, &entries, &metadata)?;
    write_atomic(path, |out| {
        out.write_all(&header)?;
        entries.iter().try_for_each(|entry| out.write_all(&entry.bytes))
    })
}

/// `[S, G, D]` as `[1, G, S, D]`.
fn by_head(x: &Tensor) -> Result<Tensor> {
    let y = transpose(x, [0, 1])?;
    y.reshape([1, y.shape()[0], y.shape()[1], y.shape()[2]])
}

/// Reads a cache for a model, and the free text that was written with it.
///
/// # Errors
/// When the file cannot be read, or its cache is none of this model or of a kind that is not known.
pub fn load(path: &Path, model: &dyn LanguageModel) -> Result<(Cache, BTreeMap<String, String>)> {
    let file = safetensors::read(path)?;
    let wrong = |why: String| Error::file(path, why);
    let mut about = BTreeMap::new();
    for (key, value) in file.metadata() {
        if let Some(key) = key.strip_prefix("0.") {
            about.insert(key.to_owned(), value.clone());
        }
    }
    let mut cache = model.cache(1)?;
    let layers = file.metadata().keys().filter(|key| key.starts_with("1.")).count();
    if layers != cache.layers.len() {
        return Err(wrong(format!(
            "it is the cache of a model with {layers} layers, this one has {}",
            cache.layers.len()
        )));
    }
    let reader = Reader { file: &file, model };
    let mut offset = 0;
    for (index, layer) in cache.layers.iter_mut().enumerate() {
        let class = file.metadata().get(&format!("1.{index}")).map_or("", String::as_str);
        match (layer, class) {
            (LayerCache::Delta(delta), "ArraysCache") => {
                let [window, state] = [0, 1].map(|slot| reader.tensor(&format!("{index}.0.{slot}"), None));
                *delta = DeltaCache { window: window?, state: state?.map(|s| single(&s)).transpose()? };
            }
            (LayerCache::Attention(attention), "KVCache") => {
                let sequence = reader.attention(index)?;
                if offset != 0 && sequence.len != offset {
                    return Err(wrong(format!("layer {index} has read {} tokens, another one {offset}", sequence.len)));
                }
                offset = sequence.len;
                *attention = AttentionCache::of(sequence);
            }
            (_, class) => return Err(wrong(format!("layer {index} is a {class}, which is none of this model's"))),
        }
    }
    Ok((Cache::at(offset, cache.layers), about))
}

struct Reader<'a> {
    file: &'a File,
    model: &'a dyn LanguageModel,
}

impl Reader<'_> {
    /// A floating tensor in f32; none where the file says so by an empty one.
    fn tensor(&self, name: &str, rank: Option<usize>) -> Result<Option<Tensor>> {
        let tensor = match self.file.entry(name) {
            None => return Ok(None),
            Some(entry) if entry.shape.elements() == 0 => return Ok(None),
            Some(_) => self.file.tensor(name, self.model.head().device())?,
        };
        if !tensor.dtype().is_float() || rank.is_some_and(|rank| tensor.shape().rank() != rank) {
            let why = format!("tensor `{name}` is {} {}", tensor.dtype(), tensor.shape());
            return Err(Error::file(self.file.path(), why));
        }
        single(&tensor).map(Some)
    }

    fn attention(&self, index: usize) -> Result<KeysAndValues> {
        let wrong = |why: String| Error::file(self.file.path(), format!("layer {index}: {why}"));
        let [keys, values] = [0, 1].map(|slot| self.tensor(&format!("{index}.{slot}"), Some(4)));
        let (Some(keys), Some(values)) = (keys?, values?) else {
            return Err(wrong("keys or values are missing".to_owned()));
        };
        let len = self.len(index)?;
        let room = keys.shape()[2];
        if keys.shape()[0] != 1 || keys.shape() != values.shape() || len > room {
            return Err(wrong(format!("keys are {}, values {}, {len} filled", keys.shape(), values.shape())));
        }
        let by_token = |x: &Tensor| transpose(&x.reshape(Shape::new(&x.shape()[1..])?)?, [0, 1]);
        Ok(KeysAndValues { keys: Some(by_token(&keys)?), values: Some(by_token(&values)?), len })
    }

    /// How many tokens an attention layer has read.
    fn len(&self, index: usize) -> Result<usize> {
        let name = format!("{index}.2");
        let wrong = || Error::file(self.file.path(), format!("`{name}` is no count of tokens"));
        let entry =
            self.file.entry(&name).filter(|entry| entry.dtype == "I32" && entry.bytes == 4).ok_or_else(wrong)?;
        let mut bytes = [0; 4];
        self.file.read_into(entry, 0, &mut bytes)?;
        usize::try_from(i32::from_le_bytes(bytes)).map_err(|_| wrong())
    }
}

fn single(x: &Tensor) -> Result<Tensor> {
    if x.dtype() == DType::F32 { Ok(x.clone()) } else { cast(x, DType::F32) }
}
