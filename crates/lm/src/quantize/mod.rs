//! Quantization: the formats of a checkpoint's modules, and which modules get which.

pub mod format;
pub mod predicate;

pub use format::Quantization;
pub use predicate::{MixedRecipe, QuantConfig};
