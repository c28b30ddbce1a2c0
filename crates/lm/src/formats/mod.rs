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
