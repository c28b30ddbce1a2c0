//! The entries of a tape, and the tensors that they connect.

use super::{Inner, State, Tape, fits, is_leaf};
use crate::{DType, Device, Error, Result, Shape, Tensor};
use std::collections::HashMap;
use std::sync::Weak;

/// The place of a traced tensor on its tape.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(super) tape: Weak<Inner>,
    pub(super) index: usize,
    /// Whether [`Tape::watch`] made it, and no operation.
    pub(super) leaf: bool,
    /// Whether its gradient stays f32: that of a leaf, and of what an operation moved out of leaves.
    pub(super) wide: bool,
}

impl Node {
    pub(crate) fn is_live(&self) -> bool {
        self.tape.strong_count() > 0
    }

    /// # Errors
    /// When a backward pass consumed the history of this result.
    pub(super) fn check_history(&self, what: &'static str, state: &State) -> Result<()> {
        if self.leaf || self.index >= state.consumed {
            return Ok(());
        }
        let why = "the tensor was computed before an earlier backward pass, which consumed its history; pass all losses \
                   to one call of Tape::backward, or detach() the tensor";
        Err(Error::value(what, why))
    }
}

pub(super) type GradientFn = Box<dyn FnOnce(Vec<Option<Tensor>>, &[bool]) -> Result<Vec<Option<Tensor>>> + Send>;

pub(super) enum Entry {
    Op { op: &'static str, inputs: Vec<Option<Input>>, outputs: Vec<Output>, gradient: GradientFn },
    Recompute { output: usize, forward: Box<dyn FnOnce() -> Result<Tensor> + Send> },
}

/// A traced input of an operation: its node, and what its gradient must be.
pub(super) struct Input {
    pub(super) index: usize,
    pub(super) shape: Shape,
    pub(super) dtype: DType,
    pub(super) device: Device,
    pub(super) leaf: bool,
}

impl Input {
    pub(super) fn of(tape: &Tape, x: &Tensor) -> Option<Self> {
        let index = tape.index(x)?;
        Some(Input { index, shape: x.shape(), dtype: x.dtype(), device: x.device().clone(), leaf: is_leaf(x) })
    }

    /// # Errors
    /// When `dx` is no gradient of this input: another shape, dtype or device.
    pub(super) fn check(&self, op: &'static str, number: usize, dx: &Tensor) -> Result<()> {
        if dx.shape() != self.shape || !fits(dx.dtype(), self.dtype) {
            let (got, want) = (format!("{} {}", dx.shape(), dx.dtype()), format!("{} {}", self.shape, self.dtype));
            return Err(Error::value(op, format!("the gradient of input {number} is {got}, expected {want}")));
        }
        if *dx.device() != self.device {
            let want = format!("expected {}, the input's handle", self.device);
            return Err(Error::value(op, format!("the gradient of input {number} is on {}, {want}", dx.device())));
        }
        Ok(())
    }
}

/// A result of an operation: its node, and the dtype to which its gradient is rounded for the operation; none where the
/// operation takes it as it comes.
pub(super) struct Output {
    pub(super) index: usize,
    pub(super) dtype: Option<DType>,
}

impl Output {
    /// Moves the gradient of this result out of the sums.
    pub(super) fn take(&self, grads: &mut HashMap<usize, Tensor>) -> Result<Option<Tensor>> {
        match (grads.remove(&self.index), self.dtype) {
            (Some(dy), Some(dtype)) if dy.dtype() != dtype => dy.converted(dtype).map(Some),
            (dy, _) => Ok(dy),
        }
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Entry::Op { op, .. } => f.write_str(op),
            Entry::Recompute { .. } => f.write_str("recompute"),
        }
    }
}
