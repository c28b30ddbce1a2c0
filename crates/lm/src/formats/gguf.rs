//! The GGUF format: a header of typed metadata and tensor entries, then the tensors' bytes, little-endian.
//!
//! Source: `docs/gguf.md` of ggml. Versions 2 and 3 are read; they differ in the byte order that they may have.

use super::regular;
use alluvium_core::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The first bytes of a file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
/// The most metadata keys. Files in use have some dozens.
const MAX_KEYS: u64 = 1 << 16;
/// The most tensors of a file.
const MAX_TENSORS: u64 = 1 << 20;
/// The most elements of all arrays of the metadata together. A vocabulary has three or four arrays of its size.
const MAX_ELEMENTS: u64 = 1 << 23;
/// The longest name of a key or a tensor, in bytes.
const MAX_NAME: u64 = 1 << 10;
/// The most files that a model is split into.
const MAX_FILES: usize = 1 << 12;
/// The rank that ggml knows.
const MAX_AXES: u32 = 4;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Any of the integer types.
    Integer(i128),
    /// `f64`, or `f32` widened to the `f64` of its shortest decimal form.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// Text.
    Text(String),
    /// Values of one type, none of them an array.
    Array(Vec<Value>),
}

/// A tensor's place in a file.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The index of its file.
    file: usize,
    /// The number of its ggml type.
    pub(crate) ggml_type: u32,
    /// The lengths of its axes, outermost first: reversed from the file.
    pub(crate) dims: Vec<usize>,
    /// Its first byte, from the start of the file.
    start: u64,
}

impl Entry {
    /// The length of a row.
    pub(crate) fn width(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    /// The number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.dims.iter().rev().skip(1).product()
    }
}

/// An open GGUF file, or all files of a model that is split. Tensors are read when asked for.
#[derive(Debug)]
pub(crate) struct GgufFile {
    files: Vec<(PathBuf, Mutex<fs::File>, u64)>,
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, Entry>,
}

/// Whether a path is a file that begins as a GGUF file does, or is named like one.
pub(crate) fn is_gguf(path: &Path) -> bool {
    let begins = || {
        let mut magic = [0; 4];
        fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *MAGIC
    };
    path.is_file() && (path.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("gguf")) || begins())
}

impl GgufFile {
    /// Opens a file and, where it is the first of a split model, all others.
    ///
    /// # Errors
    /// When a file cannot be read or is not a whole GGUF file: cut off, counts or lengths beyond the file, a key or
    /// tensor twice, a tensor outside the file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut gguf = GgufFile { files: Vec::new(), metadata: BTreeMap::new(), tensors: BTreeMap::new() };
        gguf.metadata = gguf.add(path)?;
        let count = gguf.integer("split.count")?.unwrap_or(1);
        if count > 1 {
            let number = gguf.integer("split.no")?.unwrap_or(0);
            for part in parts(path, number, count).map_err(|why| Error::file(path, why))? {
                gguf.add(&part)?;
            }
        }
        Ok(gguf)
    }

    /// Reads the header of one more file and returns its metadata.
    fn add(&mut self, path: &Path) -> Result<BTreeMap<String, Value>> {
        regular(path).map_err(Error::io(path, "read"))?;
        let file = fs::File::open(path).map_err(Error::io(path, "read"))?;
        let bytes = file.metadata().map_err(Error::io(path, "read"))?.len();
        let wrong = |why: String| Error::file(path, format!("not a whole GGUF file: {why}; fetch it again"));
        let header = Header::read(BufReader::with_capacity(1 << 20, &file), bytes).map_err(wrong)?;
        let index = self.files.len();
        for (name, mut entry) in header.tensors {
            entry.file = index;
            if self.tensors.insert(name.clone(), entry).is_some() {
                return Err(Error::file(path, format!("tensor `{name}` is there twice")));
            }
        }
        self.files.push((path.to_owned(), Mutex::new(file), bytes));
        Ok(header.metadata)
    }

    /// The first file.
    pub(crate) fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |(path, ..)| path)
    }

    /// The files and their sizes in bytes.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.files.iter().map(|(path, _, bytes)| (path.as_path(), *bytes))
    }

    /// An error that names the first file.
    pub(crate) fn error(&self, why: impl Into<String>) -> Error {
        Error::file(self.path(), why)
    }

    /// The non-negative integer under a key; `None` where it is missing.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn integer(&self, key: &str) -> Result<Option<usize>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Integer(n)) if (0..=1 << 40).contains(n) => Ok(Some(*n as usize)),
            Some(other) => Err(self.error(format!("`{key}` is {}, expected an integer", other.brief()))),
        }
    }

    /// The number under a key; `None` where it is missing.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(Value::Integer(n)) => Ok(Some(*n as f64)),
            Some(other) => Err(self.error(format!("`{key}` is {}, expected a number", other.brief()))),
        }
    }

    /// The text under a key; `None` where it is missing.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(format!("`{key}` is {}, expected text", other.brief()))),
        }
    }

    /// The boolean under a key; `None` where it is missing.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(is)) => Ok(Some(*is)),
            Some(other) => Err(self.error(format!("`{key}` is {}, expected true or false", other.brief()))),
        }
    }

    /// The array under a key; `None` where it is missing.
    ///
    /// # Errors
    /// When it is something else.
    pub(crate) fn array(&self, key: &str) -> Result<Option<&[Value]>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(self.error(format!("`{key}` is {}, expected an array", other.brief()))),
        }
    }

    /// The entry of a tensor.
    ///
    /// # Errors
    /// When it is missing.
    pub(crate) fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| self.error(format!("tensor `{name}` is missing")))
    }

    /// Checks that the file has the `bytes` bytes of a tensor.
    ///
    /// # Errors
    /// When the tensor is missing or reaches beyond the file.
    pub(crate) fn check_size(&self, name: &str, bytes: usize) -> Result<()> {
        let entry = self.entry(name)?;
        let (path, _, size) = &self.files[entry.file];
        match entry.start.saturating_add(bytes as u64) <= *size {
            true => Ok(()),
            false => {
                let why = format!("tensor `{name}` ends beyond the {size} bytes of the file; fetch it again");
                Err(Error::file(path, why))
            }
        }
    }

    /// Reads the first `bytes` bytes of a tensor.
    ///
    /// # Errors
    /// When the tensor reaches beyond the file, or the file cannot be read.
    pub(crate) fn read(&self, name: &str, bytes: usize) -> Result<Vec<u8>> {
        self.check_size(name, bytes)?;
        let entry = self.entry(name)?;
        let (path, file, _) = &self.files[entry.file];
        let mut data = vec![0; bytes];
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(entry.start)).map_err(Error::io(path, "read"))?;
        file.read_exact(&mut data).map_err(Error::io(path, "read"))?;
        Ok(data)
    }
}

/// The other files of a split model, whose first is `…-00001-of-0000N.gguf`.
fn parts(path: &Path, number: usize, count: usize) -> std::result::Result<Vec<PathBuf>, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if number != 0 {
        return Err(format!("it is part {} of {count}; give the first part", number + 1));
    }
    let end = |part: usize| format!("-{part:05}-of-{count:05}.gguf");
    let stem = name.strip_suffix(&end(1)).filter(|_| count <= MAX_FILES);
    let stem = stem.ok_or_else(|| format!("it is part 1 of {count}, expected a name that ends in {}", end(1)))?;
    Ok((2..=count).map(|part| path.with_file_name(format!("{stem}{}", end(part)))).collect())
}

impl Value {
    /// At most 40 characters of it, for errors.
    fn brief(&self) -> String {
        match self {
            Value::Integer(n) => n.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Bool(is) => is.to_string(),
            Value::Text(text) => format!("`{}`", text.chars().take(40).collect::<String>()),
            Value::Array(values) => format!("an array of {}", values.len()),
        }
    }
}

struct Header {
    metadata: BTreeMap<String, Value>,
    tensors: Vec<(String, Entry)>,
}

type Checked<T> = std::result::Result<T, String>;

/// Reads the parts of a header and counts what is left of the file.
struct Parser<R> {
    from: R,
    /// Bytes of the file that were not yet read.
    left: u64,
    /// Elements that arrays may still have.
    elements: u64,
}

impl Header {
    fn read(from: impl Read, bytes: u64) -> Checked<Self> {
        let mut parser = Parser { from, left: bytes, elements: MAX_ELEMENTS };
        if parser.array::<4>()? != *MAGIC {
            return Err("it does not begin with GGUF".to_owned());
        }
        match parser.u32()? {
            2 | 3 => {}
            version if version.swap_bytes() <= 3 => return Err("it is big-endian; little-endian is read".to_owned()),
            version => return Err(format!("its version is {version}, expected 2 or 3")),
        }
        let tensor_count = parser.count("tensors", MAX_TENSORS)?;
        let keys = parser.count("metadata keys", MAX_KEYS)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = parser.text(MAX_NAME)?;
            let kind = parser.u32()?;
            let value = parser.value(&key, kind)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("the key `{key}` is there twice"));
            }
        }
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            tensors.push(parser.tensor()?);
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Integer(n)) if (1..=1 << 20).contains(n) && (*n as u64).is_power_of_two() => *n as u64,
            Some(other) => return Err(format!("`general.alignment` is {}, expected a power of two", other.brief())),
        };
        let data = (bytes - parser.left).next_multiple_of(alignment);
        for (name, entry) in &mut tensors {
            if !entry.start.is_multiple_of(alignment) {
                return Err(format!("tensor `{name}` begins at {}, no multiple of {alignment}", entry.start));
            }
            entry.start = entry.start.checked_add(data).filter(|&start| start <= bytes).ok_or_else(|| {
                format!("tensor `{name}` begins at {} of its data, the file has {bytes} bytes in all", entry.start)
            })?;
        }
        Ok(Header { metadata, tensors })
    }
}

impl<R: Read> Parser<R> {
    fn array<const N: usize>(&mut self) -> Checked<[u8; N]> {
        let mut bytes = [0; N];
        self.take(N as u64)?;
        self.from.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    }

    /// Counts bytes that are about to be read.
    fn take(&mut self, bytes: u64) -> Checked<()> {
        self.left = self.left.checked_sub(bytes).ok_or("its header is cut off")?;
        Ok(())
    }

    fn u32(&mut self) -> Checked<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Checked<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self, of: &str, most: u64) -> Checked<u64> {
        match self.u64()? {
            count if count <= most => Ok(count),
            count => Err(format!("it claims {count} {of}, at most {most} are taken")),
        }
    }

    fn text(&mut self, most: u64) -> Checked<String> {
        let length = self.u64()?;
        if length > most.min(self.left) {
            return Err(format!(
                "it claims a text of {length} bytes, {} are left, at most {most} are taken",
                self.left
            ));
        }
        self.take(length)?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.from.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        // vocabularies of bytes that are no UTF-8 exist; a token that cannot be text is never matched
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn value(&mut self, key: &str, kind: u32) -> Checked<Value> {
        if kind != 9 {
            return self.scalar(key, kind);
        }
        let (kind, count) = (self.u32()?, self.u64()?);
        self.elements = self
            .elements
            .checked_sub(count)
            .filter(|_| count <= self.left)
            .ok_or_else(|| format!("`{key}` claims {count} elements, at most {MAX_ELEMENTS} are taken in all"))?;
        (0..count).map(|_| self.scalar(key, kind)).collect::<Checked<Vec<_>>>().map(Value::Array)
    }

    fn scalar(&mut self, key: &str, kind: u32) -> Checked<Value> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            6 => {
                let x = f32::from_le_bytes(self.array()?);
                Value::Float(x.to_string().parse().unwrap_or(f64::from(x)))
            }
            7 => Value::Bool(u8::from_le_bytes(self.array()?) != 0),
            8 => Value::Text(self.text(super::SMALL)?),
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("`{key}` has the type {other}, expected 0 to 12 and no array in an array")),
        })
    }

    /// A tensor's name and entry, its place counted from the start of the data.
    fn tensor(&mut self) -> Checked<(String, Entry)> {
        let name = self.text(MAX_NAME)?;
        let axes = self.u32()?;
        if !(1..=MAX_AXES).contains(&axes) {
            return Err(format!("tensor `{name}` has {axes} axes, expected 1 to {MAX_AXES}"));
        }
        let mut dims = Vec::new();
        let mut elements = 1u64;
        for _ in 0..axes {
            let length = self.u64()?;
            elements = elements.checked_mul(length).filter(|&n| n > 0 && n <= 1 << 48).ok_or_else(|| {
                format!("tensor `{name}` has an axis of {length}; it cannot have that many elements, or none")
            })?;
            dims.push(usize::try_from(length).map_err(|e| e.to_string())?);
        }
        dims.reverse();
        let (ggml_type, start) = (self.u32()?, self.u64()?);
        Ok((name, Entry { file: 0, ggml_type, dims, start }))
    }
}
