//! Tensors, devices, contracts and the tape of automatic differentiation.
//!
//! Nothing here knows an operation. A [`Tensor`] is shared memory on a [`Device`] with a shape and a [`DType`]; a
//! [`Contract`] describes the arguments of an operation; the [`tape`] records operations to compute gradients.
//!
//! Safe code over this crate has no undefined behavior: sizes are checked for overflow, SIMD registers exist only where
//! the CPU has them, and GPU kernels of safe code are compiled with bounds checks.

pub mod contract;
pub mod cpu;
mod device;
mod dtype;
mod error;
pub mod gpu;
mod pool;
pub mod rng;
mod shape;
pub mod tape;
mod tensor;

pub use contract::{Arg, Contract, Dims, Rule};
pub use device::Device;
pub use dtype::{DType, Element};
pub use error::{Error, Kind, Result};
pub use shape::{MAX_RANK, Shape};
pub use tape::{Backward, BackwardAll, BackwardMany, Gradients, Tape};
pub use tensor::Tensor;
