//! Reading and writing the files of a checkpoint.

pub mod atomic;
pub mod config;
pub mod folder;
pub mod layout;
pub mod safetensors;
pub mod tokenizer;
mod tokenizer_json;

pub use atomic::write_atomic;
