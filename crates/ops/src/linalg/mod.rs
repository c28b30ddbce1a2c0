//! Products of matrices, and what is built on them.
//!
//! | folder | what is in it |
//! |---|---|
//! | `matmul` | batches of matrices, either transposed |
//! | `linear` | rows times the transpose of a weight, with a bias |
//! | `newton_schulz` | the iteration that makes a matrix orthogonal |
//! | `gpu` | the matrix product on a GPU: kernels and the choice among them |
//! | `weights` | the matrix product on the CPU with weights in the dtype that they are stored in |
//!
//! The general product on the CPU is `alluvium_core::cpu::gemm`.

pub(crate) mod gpu;
pub(crate) mod linear;
pub(crate) mod matmul;
pub(crate) mod newton_schulz;
pub(crate) mod weights;
