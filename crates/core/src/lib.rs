//! What an array is: tensors, devices, contracts and the tape.
//!
//! Nothing here knows an operation. A [`Tensor`] is shared memory on a [`Device`] with a shape and a [`DType`];
//! a [`Contract`] says what an operation takes; the [`tape`] remembers what was done so that it can be undone.

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
