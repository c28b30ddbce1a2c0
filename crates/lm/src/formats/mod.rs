//! Reading and writing the files of a checkpoint.

pub mod atomic;
pub mod config;
mod dtype;
pub(crate) mod foreign;
pub(crate) mod gguf;
mod header;
pub(crate) mod json;
pub mod safetensors;

pub use atomic::write_atomic;

use std::io::Read;
use std::path::Path;
use std::{fs, io};

/// Bytes of a small JSON file: a configuration. Parsed, a byte can become sixteen.
pub(crate) const SMALL: u64 = 16 << 20;
/// Bytes of a large JSON file, which is parsed into types: a tokenizer, an index.
pub(crate) const LARGE: u64 = 100 << 20;

/// Reads a file of at most `most` bytes. Only regular files are read: opening a pipe waits for a writer.
pub(crate) fn read_whole(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    regular(path)?;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

/// As [`read_whole`], for text.
pub(crate) fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read_whole(path, most)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "stream did not contain valid UTF-8"))
}

/// Errs when there is no file, or none that holds bytes.
pub(crate) fn regular(path: &Path) -> io::Result<()> {
    match fs::metadata(path)?.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}
