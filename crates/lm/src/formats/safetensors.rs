//! The safetensors format: eight bytes of header length, a JSON header, the tensors' bytes.

use super::atomic::AtomicFile;
pub use super::dtype::StoredDtype;
use super::foreign;
pub use super::header::Entry;
use super::header::{self, Fault};
use super::regular;
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Bytes of a header, as in the format's own implementation.
const MAX_HEADER: u64 = 100_000_000;

/// An open safetensors file, its header read and checked. Tensors are read when asked for.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    file: Mutex<fs::File>,
    bytes: u64,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

/// Opens a safetensors file and checks its header.
///
/// # Errors
/// [`Kind::Io`](alluvium_core::Kind::Io) when it cannot be read, `Kind::File` when it is not what it should be: a
/// header that is too long, cut off or no JSON, a tensor that is there twice, outside the file, over another one or of
/// another size than its shape, bytes that belong to no tensor.
pub fn read(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    regular(path).map_err(Error::io(path, "read"))?;
    let mut file = fs::File::open(path).map_err(Error::io(path, "read"))?;
    let bytes = file.metadata().map_err(Error::io(path, "read"))?.len();
    let wrong = |why: String| Error::file(path, format!("not a whole safetensors file: {why}; fetch it again"));
    let mut first = Vec::new();
    (&mut file).take(512).read_to_end(&mut first).map_err(Error::io(path, "read"))?;
    if let Some(kind) = foreign::describe(&first) {
        return Err(Error::file(path, format!("not a safetensors file: {kind}")));
    }
    file.rewind().map_err(Error::io(path, "read"))?;
    if bytes < 8 {
        return Err(wrong(format!("it has {bytes} bytes, a header alone has more")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(Error::io(path, "read"))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(wrong(format!("its header claims {length} bytes, at most {MAX_HEADER} are taken")));
    }
    if length > bytes - 8 {
        return Err(wrong(format!("its header claims {length} bytes, the file has {} after it", bytes - 8)));
    }
    let mut header = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact(&mut header).map_err(Error::io(path, "read"))?;
    let header = header::parse(&header, 8 + length, bytes).map_err(|fault| match fault {
        Fault::Damaged(why) => wrong(why),
        Fault::Foreign(why) => Error::file(path, why),
    })?;
    let header::Header { entries, metadata } = header;
    Ok(File { path: path.to_owned(), file: Mutex::new(file), bytes, entries, metadata })
}

impl File {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The entries of its tensors, sorted by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The entry of one tensor.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// The free text of the header: `format` is `mlx` or `pt`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Reads one tensor, in the dtype it is stored in.
    ///
    /// # Errors
    /// When the file has no tensor of this name, its dtype is none of ours, or the file cannot be read.
    pub fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let entry =
            self.entries.get(name).ok_or_else(|| Error::file(&self.path, format!("it has no tensor `{name}`")))?;
        let dtype = self.dtype(entry, name)?;
        Tensor::filled(entry.shape, dtype, device, |bytes| self.read_into(entry, 0, bytes))
    }

    /// The dtype of a tensor of this file, as a tensor has it.
    pub(crate) fn dtype(&self, entry: &Entry, name: &str) -> Result<DType> {
        entry.dtype.tensor_dtype().ok_or_else(|| {
            let why = format!("tensor `{name}` is {}; f32, f16, bf16, u32 and u8 can be read", entry.dtype);
            Error::file(&self.path, why)
        })
    }

    /// Reads the bytes of a tensor from its byte `from` on.
    pub(crate) fn read_into(&self, entry: &Entry, from: usize, bytes: &mut [u8]) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(entry.start + from as u64)).map_err(Error::io(&self.path, "read"))?;
        file.read_exact(bytes).map_err(Error::io(&self.path, "read"))
    }
}

/// Writes tensors and metadata to a safetensors file, whole or not at all; see
/// [`write_atomic`](super::write_atomic). The header is padded so that data begin at a multiple of 8.
///
/// # Errors
/// As [`write_atomic`](super::write_atomic), and when two tensors have one name.
pub fn write(path: impl AsRef<Path>, tensors: &[(String, &Tensor)], metadata: &[(String, String)]) -> Result<()> {
    stage(path.as_ref(), tensors, metadata)?.commit()
}

pub(crate) fn stage(path: &Path, tensors: &[(String, &Tensor)], metadata: &[(String, String)]) -> Result<AtomicFile> {
    let mut order: Vec<&(String, &Tensor)> = tensors.iter().collect();
    order.sort_by(|a, b| a.0.cmp(&b.0));
    let specs: Vec<TensorSpec> = order.iter().map(|(name, tensor)| TensorSpec::of(name.clone(), tensor)).collect();
    let header = write_header(path, specs.iter(), metadata)?;
    AtomicFile::write(path, |out| {
        out.write_all(&header)?;
        for (_, tensor) in order {
            out.write_all(&tensor.to_bytes().map_err(std::io::Error::other)?)?;
        }
        Ok(())
    })
}

/// A tensor that is to be written.
#[derive(Clone, Debug)]
pub(crate) struct TensorSpec {
    pub(crate) name: String,
    pub(crate) dtype: StoredDtype,
    pub(crate) shape: Shape,
}

impl TensorSpec {
    /// The spec of a tensor.
    pub(crate) fn of(name: String, tensor: &Tensor) -> Self {
        TensorSpec { name, dtype: tensor.dtype().into(), shape: tensor.shape() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.shape.elements().saturating_mul(self.dtype.size())
    }
}

/// The length and the header of a file whose data follow in the order of `specs`.
pub(crate) fn write_header<'a>(
    path: &Path,
    specs: impl Iterator<Item = &'a TensorSpec>,
    metadata: &[(String, String)],
) -> Result<Vec<u8>> {
    let mut entries = BTreeMap::new();
    let mut at = 0;
    for spec in specs {
        let end = at + spec.bytes();
        let entry = json!({"dtype": spec.dtype.name(), "shape": spec.shape.dims(), "data_offsets": [at, end]});
        if entries.insert(spec.name.as_str(), entry).is_some() {
            return Err(Error::file(path, format!("two tensors are called `{}`", spec.name)));
        }
        at = end;
    }
    let mut header = Map::new();
    if !metadata.is_empty() {
        let metadata: Map<String, Value> = metadata.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
        header.insert("__metadata__".to_owned(), metadata.into());
    }
    header.extend(entries.into_iter().map(|(name, entry)| (name.to_owned(), entry)));
    let mut header = Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
}

/// A file that is written tensor by tensor.
pub(crate) struct Shard {
    path: PathBuf,
    out: BufWriter<fs::File>,
    left: VecDeque<TensorSpec>,
}

impl Shard {
    /// Creates the file and writes its header.
    pub(crate) fn create(path: &Path, specs: &[TensorSpec], metadata: &[(String, String)]) -> Result<Self> {
        let header = write_header(path, specs.iter(), metadata)?;
        let file = fs::File::create(path).map_err(Error::io(path, "write"))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&header).map_err(Error::io(path, "write"))?;
        Ok(Shard { path: path.to_owned(), out, left: specs.iter().cloned().collect() })
    }

    /// Writes the next tensor, which must be the one that the header says.
    pub(crate) fn append(&mut self, tensor: &Tensor) -> Result<()> {
        match self.left.pop_front() {
            Some(spec) if (spec.dtype, spec.shape) == (tensor.dtype().into(), tensor.shape()) => {}
            other => return Err(Error::value("convert", format!("{tensor:?} came in the place of {other:?}"))),
        }
        self.out.write_all(&tensor.to_bytes()?).map_err(Error::io(&self.path, "write"))
    }

    /// Ends the file once all tensors are written.
    pub(crate) fn finish(mut self) -> Result<()> {
        if let Some(spec) = self.left.pop_front() {
            return Err(Error::value("convert", format!("`{}` was not written", spec.name)));
        }
        self.out.flush().map_err(Error::io(&self.path, "write"))?;
        self.out.get_ref().sync_all().map_err(Error::io(&self.path, "write"))
    }
}
