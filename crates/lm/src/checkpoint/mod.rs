//! Folders in the layout of MLX: `config.json`, `model*.safetensors`, the tokenizer's files.

pub mod convert;
mod export;
mod folder;
mod fp8;
mod gguf;
mod index;
mod inspect;
mod load;
mod save;
mod weights;

pub use convert::{Change, Converted, convert};
pub use export::convert_to_transformers;
pub(crate) use gguf::TokenizerFiles;
pub use gguf::convert_gguf;
pub use inspect::{CheckpointInfo, TensorInfo, inspect};
pub use load::{LoadOptions, Loaded, load, load_with};
pub use save::{check_destination, save};
