//! `model.safetensors.index.json`: the file of each tensor. Checkpoints can be read without it.

use crate::formats::{LARGE, json, read_whole};
use alluvium_core::{Error, Result};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

/// The name of the index file.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The largest number of files that an index may name.
const FILES: usize = 1 << 16;

/// The contents of an index, compared with the files of the folder.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Files that are in the folder.
    present: BTreeSet<String>,
    /// The file of each tensor whose file is not in the folder.
    missing: BTreeMap<String, String>,
}

impl Index {
    /// Reads the index of a folder; a folder without one gives an empty index.
    ///
    /// # Errors
    /// When it cannot be read, is not a JSON object, or names a file outside the folder.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        #[derive(serde::Deserialize)]
        struct Json {
            #[serde(default)]
            weight_map: WeightMap,
        }
        let path = folder.join(INDEX);
        let text = match read_whole(&path, LARGE) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Index::default()),
            Err(e) => return Err(Error::io(&path, "read")(e)),
            Ok(text) => text,
        };
        let Json { weight_map: WeightMap { files, tensors } } =
            json::parse(&text).map_err(|why| Error::file(&path, why))?;
        let mut index = Index::default();
        for file in &files {
            let is_inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
            if !is_inside {
                return Err(Error::file(&path, format!("it names {file:?}, expected a file of the folder")));
            }
            if file.ends_with(".safetensors") && folder.join(file).is_file() {
                index.present.insert(file.clone());
            }
        }
        let is_missing = |(_, file): &(String, usize)| !index.present.contains(&files[*file]);
        index.missing =
            tensors.into_iter().filter(is_missing).map(|(name, file)| (name, files[file].clone())).collect();
        Ok(index)
    }

    /// The files that are in the folder.
    pub(super) fn present(&self) -> impl Iterator<Item = &str> {
        self.present.iter().map(String::as_str)
    }

    /// The file that would have a tensor but is not in the folder.
    pub(super) fn missing(&self, tensor: &str) -> Option<&str> {
        self.missing.get(tensor).map(String::as_str)
    }
}

/// Whether a file holds weights by its name alone.
pub(crate) fn is_weight_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("model") && name.ends_with(".safetensors")
}

/// `weight_map`: the distinct files, and each tensor with the index of its file.
#[derive(Default)]
struct WeightMap {
    files: Vec<String>,
    tensors: Vec<(String, usize)>,
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<WeightMap, A::Error> {
                let (mut known, mut all) = (BTreeMap::new(), WeightMap::default());
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    let next = all.files.len();
                    let number = *known.entry(file.clone()).or_insert(next);
                    if number == next {
                        all.files.push(file);
                    }
                    all.tensors.push((tensor, number));
                    if all.files.len() > FILES {
                        return Err(A::Error::custom(format!("more than {FILES} files are named")));
                    }
                }
                Ok(all)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}
