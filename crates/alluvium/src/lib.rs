//! Alluvium trains, fine-tunes, quantizes and runs hybrid Gated DeltaNet language models.
//!
//! This crate is the door: it re-exports the others.
//!
//! - [`core`]: tensors, devices, contracts and the tape;
//! - [`ops`]: every operation with its gradient, its reference and its proof;
//! - [`lm`]: models, their files, generation;
//! - [`train`]: data, optimizers, the loop.
//!
//! # Gradients
//!
//! ```
//! use alluvium::core::{Device, Tape, Tensor};
//! use alluvium::ops::{Over, rms_norm, sum};
//!
//! let device = Device::cpu();
//! let tape = Tape::new();
//! let x = tape.watch(&Tensor::from_slice(&[3.0f32, 4.0], [1, 2], &device)?);
//! let w = tape.watch(&Tensor::full([2], 1.0, &device)?);
//! let loss = sum(&rms_norm(&x, &w, 1e-6)?, Over::All)?;
//! let gradients = loss.backward()?;
//! assert_eq!(gradients.get(&w).unwrap().shape(), w.shape());
//! # Ok::<(), alluvium::core::Error>(())
//! ```
//!
//! # A model of your own
//!
//! Defined, trained to count, saved, loaded and run:
//!
#![doc = include_str!("own_model.md")]

pub use alluvium_core as core;
pub use alluvium_lm as lm;
pub use alluvium_ops as ops;
pub use alluvium_train as train;

pub use alluvium_core::{DType, Device, Error, Result, Shape, Tape, Tensor};

/// The README's example is compiled and run with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
