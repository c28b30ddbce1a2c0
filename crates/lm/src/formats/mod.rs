//! Reading and writing the files of a checkpoint.

pub mod atomic;
pub mod chat;
pub mod config;
pub mod folder;
mod keys;
pub mod layout;
pub mod prompt_cache;
pub mod quantization;
pub mod safetensors;
pub mod thinking;
pub mod tokenizer;
mod tokenizer_json;

pub use atomic::write_atomic;

use std::path::Path;
use std::{fs, io};

/// Reads a file whole. What is no regular file is refused: to open a pipe waits for a writer, who may never come.
pub(crate) fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    regular(path)?;
    fs::read(path)
}

/// Errs when there is no file, or none that holds bytes.
pub(crate) fn regular(path: &Path) -> io::Result<()> {
    match fs::metadata(path)?.is_file() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}
