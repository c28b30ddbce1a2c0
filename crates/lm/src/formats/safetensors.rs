//! The safetensors format: eight bytes of header length, a JSON header, the tensors' bytes.

use super::atomic::Staged;
use super::keys::Keys;
use super::regular;
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// As in the format's own implementation: a longer header is an attack.
const LONGEST_HEADER: u64 = 100_000_000;

/// An open safetensors file, its header read and checked. Tensors are read when asked for.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    file: Mutex<fs::File>,
    bytes: u64,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

/// What the header says of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The lengths of the axes.
    pub shape: Shape,
    /// As the file names it: `F32`, `BF16`, `I64`.
    pub dtype: String,
    /// Its size in the file.
    pub bytes: usize,
    start: u64,
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
    if bytes < 8 {
        return Err(wrong(format!("it has {bytes} bytes, a header alone has more")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(Error::io(path, "read"))?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(wrong(format!("its header claims {length} bytes, at most {LONGEST_HEADER} are taken")));
    }
    if length > bytes - 8 {
        return Err(wrong(format!("its header claims {length} bytes, the file has {} after it", bytes - 8)));
    }
    let mut header = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact(&mut header).map_err(Error::io(path, "read"))?;
    let header: Keys<Field> =
        serde_json::from_slice(&header).map_err(|e| wrong(format!("its header is no JSON object: {e}")))?;
    let (entries, metadata) = parse(header, 8 + length, bytes).map_err(wrong)?;
    Ok(File { path: path.to_owned(), file: Mutex::new(file), bytes, entries, metadata })
}

/// What the header has under a name.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Field {
    Object(Keys<Value>),
    Other(IgnoredAny),
}

impl Field {
    /// Its keys, each once; none of what is no object.
    fn keys(self) -> std::result::Result<Map<String, Value>, String> {
        let mut keys = Map::new();
        let Field::Object(Keys(all)) = self else { return Ok(keys) };
        for (key, value) in all {
            if keys.contains_key(&key) {
                return Err(key);
            }
            keys.insert(key, value);
        }
        Ok(keys)
    }
}

type Parsed = (BTreeMap<String, Entry>, BTreeMap<String, String>);

fn parse(header: Keys<Field>, data: u64, end: u64) -> std::result::Result<Parsed, String> {
    let (mut entries, mut metadata) = (BTreeMap::new(), None);
    for (name, field) in header.0 {
        if name == "__metadata__" {
            let keys = field.keys().map_err(|key| format!("`{key}` of its __metadata__ is there twice"))?;
            let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if metadata.replace(keys.into_iter().map(|(key, value)| (key, text(value))).collect()).is_some() {
                return Err("`__metadata__` is there twice".to_owned());
            }
            continue;
        }
        if entries.contains_key(&name) {
            return Err(format!("tensor `{name}` is there twice"));
        }
        let keys = field.keys().map_err(|key| format!("tensor `{name}`: its {key} is there twice"))?;
        let entry = entry(&keys.into(), data, end).map_err(|why| format!("tensor `{name}`: {why}"))?;
        entries.insert(name, entry);
    }
    let mut order: Vec<(&String, &Entry)> = entries.iter().collect();
    // empty tensors first where several begin at the same place
    order.sort_by_key(|(_, e)| (e.start, e.bytes));
    let mut free = data;
    for (name, entry) in order {
        if entry.start < free {
            return Err(format!("tensor `{name}` begins inside another one"));
        }
        if entry.start > free {
            return Err(format!("the {} bytes before tensor `{name}` belong to no tensor", entry.start - free));
        }
        free = entry.start + entry.bytes as u64;
    }
    if free != end {
        return Err(format!("the last {} bytes belong to no tensor", end - free));
    }
    Ok((entries, metadata.unwrap_or_default()))
}

fn entry(value: &Value, data: u64, end: u64) -> std::result::Result<Entry, String> {
    let dtype = value["dtype"].as_str().ok_or("its dtype is missing")?;
    let size = width(dtype).ok_or_else(|| format!("its dtype `{dtype}` is not known"))?;
    let axes = value["shape"].as_array().ok_or("its shape is missing")?;
    let axes: Option<Vec<usize>> = axes.iter().map(|a| a.as_u64().and_then(|a| a.try_into().ok())).collect();
    let axes = axes.ok_or_else(|| format!("its shape {} is no list of lengths", value["shape"]))?;
    let shape = Shape::new(&axes).map_err(|e| e.to_string())?;
    let [from, to] = offsets(&value["data_offsets"]).ok_or("its data_offsets are missing")?;
    if from > to || to > end - data {
        return Err(format!("its bytes {from} to {to} are not in the file's {}", end - data));
    }
    let bytes = shape.elements() * size;
    if to - from != bytes as u64 {
        return Err(format!("{shape} of {dtype} takes {bytes} bytes, {} are given", to - from));
    }
    Ok(Entry { shape, dtype: dtype.to_owned(), bytes, start: data + from })
}

fn offsets(value: &Value) -> Option<[u64; 2]> {
    match value.as_array()?.as_slice() {
        [from, to] => Some([from.as_u64()?, to.as_u64()?]),
        _ => None,
    }
}

fn width(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 1,
        "F16" | "BF16" | "I16" | "U16" => 2,
        "F32" | "I32" | "U32" => 4,
        "F64" | "I64" | "U64" => 8,
        _ => return None,
    })
}

impl Entry {
    /// The dtype of a tensor read from here; none where there is no such dtype of ours.
    pub fn tensor_dtype(&self) -> Option<DType> {
        Some(match self.dtype.as_str() {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            "U32" => DType::U32,
            "U8" => DType::U8,
            _ => return None,
        })
    }
}

impl File {
    /// Where it lies.
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

    /// What the header says of its tensors, sorted by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// What the header says of one tensor.
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
        entry.tensor_dtype().ok_or_else(|| {
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

pub(crate) fn stage(path: &Path, tensors: &[(String, &Tensor)], metadata: &[(String, String)]) -> Result<Staged> {
    let mut order: Vec<&(String, &Tensor)> = tensors.iter().collect();
    order.sort_by(|a, b| a.0.cmp(&b.0));
    let pieces: Vec<Piece> =
        order.iter().map(|(name, t)| Piece { name: name.clone(), dtype: t.dtype(), shape: t.shape() }).collect();
    let header = header(path, &pieces, metadata)?;
    Staged::write(path, |out| {
        out.write_all(&header)?;
        for (_, tensor) in order {
            out.write_all(&tensor.to_bytes().map_err(std::io::Error::other)?)?;
        }
        Ok(())
    })
}

/// What a header says of a tensor that is to be written.
pub(crate) trait Described {
    fn name(&self) -> &str;
    fn dtype(&self) -> String;
    fn axes(&self) -> &[usize];
    fn bytes(&self) -> usize;
}

/// A tensor that is to be written later.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Shape,
}

impl Piece {
    pub(crate) fn bytes(&self) -> usize {
        self.shape.elements() * self.dtype.size()
    }
}

impl Described for Piece {
    fn name(&self) -> &str {
        &self.name
    }
    fn dtype(&self) -> String {
        self.dtype.to_string().to_uppercase()
    }
    fn axes(&self) -> &[usize] {
        self.shape.dims()
    }
    fn bytes(&self) -> usize {
        Piece::bytes(self)
    }
}

/// Bytes of any dtype of the format.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Raw {
    /// A tensor's.
    pub(crate) fn of(name: String, tensor: &Tensor) -> Result<Self> {
        let dtype = match tensor.dtype() {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::U32 => "U32",
            DType::U8 => "U8",
        };
        Ok(Raw { name, dtype, shape: tensor.shape().to_vec(), bytes: tensor.to_bytes()? })
    }
}

impl Described for Raw {
    fn name(&self) -> &str {
        &self.name
    }
    fn dtype(&self) -> String {
        self.dtype.to_owned()
    }
    fn axes(&self) -> &[usize] {
        &self.shape
    }
    fn bytes(&self) -> usize {
        self.bytes.len()
    }
}

/// The length and the header of a file whose data follow in the order of `pieces`.
pub(crate) fn header<P: Described>(path: &Path, pieces: &[P], metadata: &[(String, String)]) -> Result<Vec<u8>> {
    let mut entries = BTreeMap::new();
    let mut at = 0;
    for piece in pieces {
        let end = at + piece.bytes();
        let entry = json!({"dtype": piece.dtype(), "shape": piece.axes(), "data_offsets": [at, end]});
        if entries.insert(piece.name(), entry).is_some() {
            return Err(Error::file(path, format!("two tensors are called `{}`", piece.name())));
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
    left: VecDeque<Piece>,
}

impl Shard {
    /// Creates the file and writes its header.
    pub(crate) fn create(path: &Path, pieces: &[Piece], metadata: &[(String, String)]) -> Result<Self> {
        let header = header(path, pieces, metadata)?;
        let file = fs::File::create(path).map_err(Error::io(path, "write"))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&header).map_err(Error::io(path, "write"))?;
        Ok(Shard { path: path.to_owned(), out, left: pieces.iter().cloned().collect() })
    }

    /// Writes the next tensor, which must be the one that the header says.
    pub(crate) fn append(&mut self, tensor: &Tensor) -> Result<()> {
        match self.left.pop_front() {
            Some(piece) if (piece.dtype, piece.shape) == (tensor.dtype(), tensor.shape()) => {}
            other => return Err(Error::value("convert", format!("{tensor:?} came in the place of {other:?}"))),
        }
        self.out.write_all(&tensor.to_bytes()?).map_err(Error::io(&self.path, "write"))
    }

    /// Ends the file once all tensors are written.
    pub(crate) fn finish(mut self) -> Result<()> {
        if let Some(piece) = self.left.pop_front() {
            return Err(Error::value("convert", format!("`{}` was not written", piece.name)));
        }
        self.out.flush().map_err(Error::io(&self.path, "write"))?;
        self.out.get_ref().sync_all().map_err(Error::io(&self.path, "write"))
    }
}
