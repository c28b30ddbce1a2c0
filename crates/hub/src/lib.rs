//! Models by name: `org/name`, or `org/name@revision`, in the cache of the Hugging Face Hub.
//!
//! The layout of the cache is that of `huggingface_hub`, so both programs use the same files:
//! `models--org--name/refs/main` holds the commit, `snapshots/COMMIT` the files as links into `blobs`.

mod cache;
#[cfg(feature = "download")]
mod download;
mod name;

pub use cache::{CachedModel, Hub};
#[cfg(feature = "download")]
pub use download::{Progress, ProgressObserver, Remote};
pub use name::ModelName;
