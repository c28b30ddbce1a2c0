//! The weight files of a folder, seen as one.

use crate::formats::safetensors::{self, Entry, File, StoredDtype};
use crate::formats::{LARGE, read_whole};
use crate::models::sanitize::{Recipe, Side, Stored};
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use half::{bf16, f16};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The name of the list of weight files, which is not needed to read them.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The weight files of a folder: headers alone are read until a tensor is asked for.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    files: Vec<File>,
    /// The file of each tensor.
    places: BTreeMap<String, usize>,
}

impl Folder {
    /// Opens every `model*.safetensors` of a folder.
    ///
    /// # Errors
    /// When there is none, one cannot be read or is not what it should be, the index names one that is not there, or two
    /// hold a tensor of the same name.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let files: Vec<File> = weight_files(path)?.iter().map(safetensors::read).collect::<Result<_>>()?;
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(other) = places.insert(name.to_owned(), index) {
                    let other = files[other].path().display();
                    return Err(Error::file(
                        file.path(),
                        format!("tensor `{name}` is in {other}, too; remove one file"),
                    ));
                }
            }
        }
        Ok(Folder { path: path.to_owned(), files, places })
    }

    /// The files, sorted by name.
    pub(super) fn into_files(self) -> Vec<File> {
        self.files
    }

    /// The shapes of all tensors.
    pub(super) fn stored(&self) -> Stored<'_> {
        self.files.iter().flat_map(File::entries).map(|(name, entry)| (name, entry.shape)).collect()
    }

    /// Where a tensor is; the folder when it is nowhere.
    pub(super) fn place(&self, name: &str) -> &Path {
        let file = self.places.get(name).map(|&index| &self.files[index]).or(self.files.first());
        file.map_or(self.path.as_path(), File::path)
    }

    fn entry(&self, name: &str) -> Result<(&File, &Entry)> {
        let file = self.places.get(name).map(|&index| &self.files[index]);
        file.and_then(|file| Some((file, file.entry(name)?)))
            .ok_or_else(|| Error::file(self.place(name), format!("tensor `{name}` is missing")))
    }

    /// The dtype, as the files name it, and the shape of what a recipe makes.
    ///
    /// # Errors
    /// When a stored tensor is missing, or their dtypes and shapes do not fit the recipe.
    pub(super) fn describe(&self, recipe: &Recipe) -> Result<(StoredDtype, Shape)> {
        let names = recipe.stored();
        let first = names.first().map_or("", String::as_str);
        let (file, entry) = self.entry(first)?;
        for name in names {
            let (file, other) = self.entry(name)?;
            if (other.dtype, other.shape) != (entry.dtype, entry.shape) {
                let why = format!("tensor `{name}` is {} {}", other.dtype, other.shape);
                return Err(Error::file(file.path(), format!("{why}, `{first}` {} {}", entry.dtype, entry.shape)));
            }
        }
        match recipe.shape(entry.shape) {
            Some(shape) => Ok((entry.dtype, shape)),
            None => Err(Error::file(file.path(), format!("tensor `{first}` cannot be {}", entry.shape))),
        }
    }

    /// Makes a tensor, in the dtype that is stored, its bytes read straight into its memory.
    ///
    /// # Errors
    /// As [`Folder::describe`], and when a file cannot be read or the dtype is none of ours.
    pub(super) fn tensor(&self, recipe: &Recipe, device: &Device) -> Result<Tensor> {
        let (_, shape) = self.describe(recipe)?;
        let names = recipe.stored();
        let (file, entry) = self.entry(names.first().map_or("", String::as_str))?;
        let dtype = file.dtype(entry, &names[0])?;
        let size = dtype.size();
        Tensor::filled(shape, dtype, device, |bytes| match recipe {
            Recipe::Same(_) | Recipe::Filter(_) => file.read_into(entry, 0, bytes),
            Recipe::PlusOne(_) => {
                file.read_into(entry, 0, bytes)?;
                add_one(bytes, dtype);
                Ok(())
            }
            Recipe::Stack(names) => {
                for (name, part) in names.iter().zip(bytes.chunks_exact_mut(entry.bytes.max(1))) {
                    let (file, entry) = self.entry(name)?;
                    file.read_into(entry, 0, part)?;
                }
                Ok(())
            }
            Recipe::Half(_, side) => {
                let half = shape[1] * shape[2] * size;
                let from = if *side == Side::First { 0 } else { half };
                for (expert, part) in bytes.chunks_exact_mut(half.max(1)).enumerate() {
                    file.read_into(entry, 2 * expert * half + from, part)?;
                }
                Ok(())
            }
        })
    }
}

/// Adds one to little-endian numbers of a floating dtype, in that dtype: each sum is rounded to it.
fn add_one(bytes: &mut [u8], dtype: DType) {
    for x in bytes.chunks_exact_mut(dtype.size()) {
        match (dtype, &mut *x) {
            (DType::F32, &mut [a, b, c, d]) => {
                let y = f32::from_le_bytes([a, b, c, d]) + 1.0;
                x.copy_from_slice(&y.to_le_bytes());
            }
            (DType::BF16, &mut [a, b]) => {
                let y = bf16::from_f32(bf16::from_le_bytes([a, b]).to_f32() + 1.0);
                x.copy_from_slice(&y.to_le_bytes());
            }
            (DType::F16, &mut [a, b]) => {
                let y = f16::from_f32(f16::from_le_bytes([a, b]).to_f32() + 1.0);
                x.copy_from_slice(&y.to_le_bytes());
            }
            _ => {}
        }
    }
}

/// `model*.safetensors` of a folder, sorted; all that an index names must be there.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        if is_weight_file(&path) {
            found.push(path);
        }
    }
    found.sort();
    let index = folder.join(INDEX);
    for file in indexed(&index)? {
        if found.binary_search(&folder.join(&file)).is_err() {
            return Err(Error::file(index, format!("it names {file}, which is not in the folder; fetch that file")));
        }
    }
    if found.is_empty() {
        return Err(Error::file(folder, "there are no weights: no file is called model*.safetensors"));
    }
    Ok(found)
}

pub(super) fn is_weight_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("model") && name.ends_with(".safetensors")
}

/// The files that an index names; none where there is no index.
fn indexed(path: &Path) -> Result<BTreeSet<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        #[serde(default)]
        weight_map: Files,
    }
    match read_whole(path, LARGE) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(e) => Err(Error::io(path, "read")(e)),
        Ok(text) => match serde_json::from_slice::<Index>(&text) {
            Ok(index) => Ok(index.weight_map.0),
            Err(e) if e.is_data() => Err(Error::file(path, format!("expected a JSON object: {e}"))),
            Err(e) => Err(Error::file(path, format!("not valid JSON: {e}"))),
        },
    }
}

/// The values of `weight_map`, each once.
#[derive(Default)]
struct Files(BTreeSet<String>);

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Values;
        impl<'de> Visitor<'de> for Values {
            type Value = Files;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map of tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Files, A::Error> {
                let mut files = BTreeSet::new();
                while let Some((_, file)) = map.next_entry::<IgnoredAny, String>()? {
                    files.insert(file);
                }
                Ok(Files(files))
            }
        }
        deserializer.deserialize_map(Values)
    }
}
