//! The weight files of a folder, seen as one.

use super::fp8::{self, BlockScales};
use super::index::{INDEX, Index, is_weight_file};
use crate::adapter::ADAPTERS;
use crate::formats::foreign::PYTORCH;
use crate::formats::safetensors::{self, Entry, File, StoredDtype};
use crate::models::sanitize::{Side, Stored, Transform};
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The weight files of a folder: headers alone are read until a tensor is asked for.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    files: Vec<File>,
    /// The file of each tensor.
    places: BTreeMap<String, usize>,
    /// The scales of tensors in fp8.
    fp8: BTreeMap<String, BlockScales>,
    /// The dtype that fp8 tensors are widened to.
    fp8_dtype: DType,
    index: Index,
}

impl Folder {
    /// Opens every `model*.safetensors` of a folder, and the files that its index names.
    ///
    /// # Errors
    /// When there is none, one cannot be read or is not what it should be, or two hold a tensor of the same name.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let index = Index::read(path)?;
        let files: Vec<File> = weight_files(path, &index)?.iter().map(safetensors::read).collect::<Result<_>>()?;
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
        let mut folder =
            Folder { path: path.to_owned(), files, places, fp8: BTreeMap::new(), fp8_dtype: DType::BF16, index };
        folder.fp8 = fp8::scales(|name| folder.entry(name).ok().map(|(_, entry)| entry), folder.places.keys());
        Ok(folder)
    }

    /// Whether there are tensors in fp8.
    pub(super) fn has_fp8(&self) -> bool {
        !self.fp8.is_empty()
    }

    /// Sets what tensors in fp8 are read as, bf16 unless it is said, and the blocks of their scales.
    pub(super) fn read_fp8(&mut self, dtype: DType, block: [usize; 2]) {
        self.fp8_dtype = dtype;
        self.fp8.values_mut().for_each(|scales| scales.block = block);
    }

    pub(super) fn into_files(self) -> Vec<File> {
        self.files
    }

    /// The shapes of all tensors, but for the scales of those in fp8.
    pub(super) fn stored(&self) -> Stored<'_> {
        let scales: Vec<&str> = self.fp8.values().map(|scales| scales.name.as_str()).collect();
        let all = self.files.iter().flat_map(File::entries).map(|(name, entry)| (name, entry.shape));
        all.filter(|(name, _)| !name.ends_with(fp8::SUFFIX) || !scales.contains(name)).collect()
    }

    /// The names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Whether two tensors hold the same elements, by a sample of their bytes.
    pub(super) fn are_equal(&self, a: &str, b: &str) -> Result<bool> {
        const PIECE: usize = 1 << 12;
        const PIECES: usize = 64;
        let ((file_a, a), (file_b, b)) = (self.entry(a)?, self.entry(b)?);
        if (a.dtype, a.shape) != (b.dtype, b.shape) {
            return Ok(false);
        }
        let [mut left, mut right] = [vec![0; PIECE.min(a.bytes)], vec![0; PIECE.min(a.bytes)]];
        for piece in 0..PIECES {
            let at = (a.bytes - left.len()) / (PIECES - 1) * piece;
            file_a.read_into(a, at, &mut left)?;
            file_b.read_into(b, at, &mut right)?;
            if left != right {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The file of a tensor, or the folder if no file has it.
    pub(super) fn place(&self, name: &str) -> &Path {
        let file = self.places.get(name).map(|&index| &self.files[index]).or(self.files.first());
        file.map_or(self.path.as_path(), File::path)
    }

    fn entry(&self, name: &str) -> Result<(&File, &Entry)> {
        let file = self.places.get(name).map(|&index| &self.files[index]);
        file.and_then(|file| Some((file, file.entry(name)?)))
            .ok_or_else(|| Error::file(self.place(name), format!("tensor `{name}` is missing{}", self.fetch(name))))
    }

    /// Advice for a missing tensor: the file that the index names, if that file is missing.
    pub(super) fn fetch(&self, name: &str) -> String {
        match self.index.missing(name) {
            Some(file) => format!("; {INDEX} says that it is in {file}, which is not in the folder; fetch that file"),
            None => String::new(),
        }
    }

    /// The dtype that a tensor is read as.
    fn dtype(&self, name: &str, entry: &Entry) -> StoredDtype {
        if self.fp8.contains_key(name) { self.fp8_dtype.into() } else { entry.dtype }
    }

    /// Reads the elements of a tensor from its byte `from` on, both counted in the dtype that it is read as.
    fn read_into(&self, name: &str, from: usize, bytes: &mut [u8]) -> Result<()> {
        let (file, entry) = self.entry(name)?;
        let Some(scales) = self.fp8.get(name) else { return file.read_into(entry, from, bytes) };
        let size = self.fp8_dtype.size();
        let mut codes = vec![0; bytes.len() / size];
        file.read_into(entry, from / size, &mut codes)?;
        let (scale_file, scale) = self.entry(&scales.name)?;
        let mut raw = vec![0; scale.bytes];
        scale_file.read_into(scale, 0, &mut raw)?;
        let wrong = |why: String| Error::file(scale_file.path(), format!("tensor `{}`: {why}", scales.name));
        let values = scales.dequantize((entry.shape, scale), from / size, &codes, &raw).map_err(wrong)?;
        write_floats(&values, self.fp8_dtype, bytes);
        Ok(())
    }

    /// The dtype, as the files name it, and the shape of what a transform makes.
    ///
    /// # Errors
    /// When a stored tensor is missing, or their dtypes and shapes do not fit the transform.
    pub(super) fn describe(&self, transform: &Transform) -> Result<(StoredDtype, Shape)> {
        let names = transform.stored();
        let first = names.first().map_or("", String::as_str);
        let (file, entry) = self.entry(first)?;
        let dtype = self.dtype(first, entry);
        for name in names {
            let (file, other) = self.entry(name)?;
            if (self.dtype(name, other), other.shape) != (dtype, entry.shape) {
                let why = format!("tensor `{name}` is {} {}", self.dtype(name, other), other.shape);
                return Err(Error::file(file.path(), format!("{why}, `{first}` {dtype} {}", entry.shape)));
            }
        }
        match transform.shape(entry.shape) {
            Some(shape) => Ok((dtype, shape)),
            None => Err(Error::file(file.path(), format!("tensor `{first}` cannot be {}", entry.shape))),
        }
    }

    /// Makes a tensor, in the dtype that is stored, its bytes read straight into its memory.
    ///
    /// # Errors
    /// As [`Folder::describe`], and when a file cannot be read or the dtype is none of ours.
    pub(super) fn tensor(&self, transform: &Transform, device: &Device) -> Result<Tensor> {
        let (dtype, shape) = self.describe(transform)?;
        let names = transform.stored();
        let first = names.first().map_or("", String::as_str);
        let dtype = dtype.tensor_dtype().ok_or_else(|| {
            let why = format!("tensor `{first}` is {dtype}; f32, f16, bf16, u32 and u8 can be read");
            Error::file(self.place(first), why)
        })?;
        let size = dtype.size();
        Tensor::filled(shape, dtype, device, |bytes| match transform {
            Transform::Same(_) | Transform::Filter(_) => self.read_into(first, 0, bytes),
            Transform::PlusOne(_) => {
                self.read_into(first, 0, bytes)?;
                add_one(bytes, dtype);
                Ok(())
            }
            Transform::Stack(names) => {
                let each = bytes.len() / names.len();
                names
                    .iter()
                    .zip(bytes.chunks_exact_mut(each.max(1)))
                    .try_for_each(|(name, part)| self.read_into(name, 0, part))
            }
            Transform::Half(_, side) => {
                let half = shape[1] * shape[2] * size;
                let from = if *side == Side::First { 0 } else { half };
                let experts = bytes.chunks_exact_mut(half.max(1)).enumerate();
                experts.into_iter().try_for_each(|(expert, part)| self.read_into(first, 2 * expert * half + from, part))
            }
        })
    }
}

/// Writes values as little-endian elements of a floating dtype.
fn write_floats(values: &[f32], dtype: DType, bytes: &mut [u8]) {
    for (x, &value) in bytes.chunks_exact_mut(dtype.size()).zip(values) {
        match dtype {
            DType::BF16 => x.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            DType::F16 => x.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            _ => x.copy_from_slice(&value.to_le_bytes()),
        }
    }
}

/// Adds one to little-endian elements of a floating dtype; each sum is rounded to that dtype.
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

/// `model*.safetensors` of a folder, and the files that its index names and that are there, sorted.
fn weight_files(folder: &Path, index: &Index) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = index.present().map(|file| folder.join(file)).collect();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let path = entry.map_err(Error::io(folder, "read"))?.path();
        if is_weight_file(&path) {
            found.push(path);
        }
    }
    found.sort();
    found.dedup();
    if found.is_empty() {
        let other = other_weights(folder).map_or(String::new(), |other| format!("; {other}"));
        let why = format!("there are no weights: no file is called model*.safetensors{other}");
        return Err(Error::file(folder, why));
    }
    Ok(found)
}

/// Names a file of the folder that holds weights in another form, and what to do with it.
fn other_weights(folder: &Path) -> Option<String> {
    let names = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let names: Vec<String> = names.collect();
    let ends = |ends: &[&str]| names.iter().filter(|name| ends.iter().any(|end| name.ends_with(end))).min();
    if let Some(name) = names.iter().find(|name| [ADAPTERS, "adapter_model.safetensors"].contains(&name.as_str())) {
        return Some(format!("{name} is an adapter: give the folder of its model, and this one as --adapter-path"));
    }
    if let Some(name) = ends(&[".gguf"]) {
        return Some(format!("give {name} itself: --model {}", folder.join(name).display()));
    }
    if let Some(name) = ends(&[".safetensors"]) {
        return Some(format!("{name} may be in a layout of its own; fetch the one of transformers"));
    }
    let name = ends(&[".bin", ".pt", ".pth", ".ckpt"]).filter(|name| *name != "training_args.bin")?;
    Some(format!("{name} is for PyTorch; {PYTORCH}"))
}
