//! Quantized matrices: packing, unpacking, and products with packed weights.
//!
//! A row is a stream of codes of a few bits. Groups of a row share a scale and, in affine packing, a bias: [`Packing`].
//! Operations borrow a matrix as [`Quantized`] and return it as [`Packed`]. Packed weights of experts are multiplied in
//! `experts`.
//!
//! | folder | what is in it |
//! |---|---|
//! | `quantize`, `quantize_affine` | floats to codes |
//! | `dequantize`, `quantized_embedding` | codes to floats, all rows or those of ids |
//! | `quantized_matmul` | rows times the transpose of a packed matrix |
//! | `quantized_matmul_swiglu` | SwiGLU of two such products, in one launch |
//! | `quantized_cross_entropy` | the loss over a packed output projection; its kernels are those of `cross_entropy` |
//! | `packing` | the formats, and checks that words, scales and biases belong together |
//! | `cpu`, `gpu` | kernels that several operations share |
//! | `reference` | the definition of every format in f64 |

pub(crate) mod cpu;
pub(crate) mod dequantize;
pub(crate) mod gpu;
mod packing;
pub(crate) mod quantize;
pub(crate) mod quantize_affine;
pub(crate) mod quantized_cross_entropy;
pub(crate) mod quantized_embedding;
pub(crate) mod quantized_matmul;
pub(crate) mod quantized_matmul_swiglu;
pub(crate) mod reference;

pub use packing::{Packed, Packing, Quantized};
pub(crate) use packing::{PackedLayout, SCALES};
