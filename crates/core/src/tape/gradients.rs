//! The sums of gradients, and what a backward pass returns.

use super::Inner;
use crate::{DType, Result, Tensor};
use std::collections::HashMap;
use std::sync::Weak;

/// The gradients of the watched tensors that a backward pass returns.
#[derive(Debug)]
pub struct Gradients {
    pub(super) grads: HashMap<usize, Tensor>,
    pub(super) tape: Weak<Inner>,
}

impl Gradients {
    /// The gradient of a watched tensor, in f32; `None` where no loss depends on it.
    pub fn get(&self, x: &Tensor) -> Option<&Tensor> {
        self.grads.get(&self.index(x)?)
    }

    /// As [`Gradients::get`], removed from here.
    pub fn take(&mut self, x: &Tensor) -> Option<Tensor> {
        let index = self.index(x)?;
        self.grads.remove(&index)
    }

    fn index(&self, x: &Tensor) -> Option<usize> {
        x.node().filter(|node| node.tape.ptr_eq(&self.tape)).map(|node| node.index)
    }
}

/// Adds a gradient to the sum of those of its node; the sum of a leaf is f32.
pub(super) fn add(grads: &mut HashMap<usize, Tensor>, index: usize, dx: Tensor, leaf: bool) -> Result<()> {
    let dx = if leaf && dx.dtype().is_float() { dx.converted(DType::F32)? } else { dx };
    let sum = match grads.remove(&index) {
        Some(sum) => sum.accumulate(&dx)?,
        None => dx,
    };
    grads.insert(index, sum);
    Ok(())
}

/// See [`Tensor::accumulate`].
///
/// # Errors
/// As [`Tensor::accumulate`].
pub fn accumulate(sum: Tensor, x: &Tensor) -> Result<Tensor> {
    sum.accumulate(x)
}
