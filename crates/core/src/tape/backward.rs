//! The traits that operations implement to give gradients.

use crate::{Error, Result, Tensor};

/// The gradient of an operation with `N` inputs and one result.
pub trait Backward<const N: usize>: Send + 'static {
    /// The operation's name.
    fn op(&self) -> &'static str;

    /// Whether the results are elements of the inputs, only moved. Gradients of moved weights then pass in the dtype in
    /// which they come: `dy` may be f32 where the result is half precision.
    fn moves(&self) -> bool {
        false
    }

    /// The gradients of the inputs, in the order that [`record`](super::record) took them; `need` says which are
    /// wanted.
    ///
    /// `dy` has the result's dtype. A gradient has its input's shape and device, and its dtype or f32:
    /// [`Tensor::gradient_dtype`] says which a weight asks for. A wanted gradient that is `None` is an error of the
    /// backward pass.
    ///
    /// # Errors
    /// When computing a gradient fails.
    fn backward(self, dy: Tensor, need: [bool; N]) -> Result<[Option<Tensor>; N]>;
}

/// The gradient of an operation with `N` inputs and `M` results.
pub trait BackwardMany<const N: usize, const M: usize>: Send + 'static {
    /// The operation's name.
    fn op(&self) -> &'static str;

    /// As [`Backward::moves`].
    fn moves(&self) -> bool {
        false
    }

    /// As [`Backward::backward`]. `dy` is `None` for a result that no loss depends on; then a wanted gradient may be
    /// `None`, too, which means zero.
    ///
    /// # Errors
    /// When computing a gradient fails.
    fn backward(self, dy: [Option<Tensor>; M], need: [bool; N]) -> Result<[Option<Tensor>; N]>;
}

/// The gradient of an operation whose numbers of inputs and results are known only when it runs.
pub trait BackwardAll: Send + 'static {
    /// The operation's name.
    fn op(&self) -> &'static str;

    /// As [`Backward::moves`].
    fn moves(&self) -> bool {
        false
    }

    /// As [`BackwardMany::backward`]: `dy` has one place for each result, `need` and the returned list one for each
    /// input.
    ///
    /// # Errors
    /// When computing a gradient fails.
    fn backward(self, dy: Vec<Option<Tensor>>, need: &[bool]) -> Result<Vec<Option<Tensor>>>;
}

/// Adapts the gradient of one result to [`BackwardMany`].
pub(super) struct Single<G>(pub(super) G);

impl<const N: usize, G: Backward<N>> BackwardMany<N, 1> for Single<G> {
    fn op(&self) -> &'static str {
        self.0.op()
    }

    fn moves(&self) -> bool {
        self.0.moves()
    }

    fn backward(self, [dy]: [Option<Tensor>; 1], need: [bool; N]) -> Result<[Option<Tensor>; N]> {
        match dy {
            Some(dy) => self.0.backward(dy, need),
            None => Ok([const { None }; N]),
        }
    }
}

/// Adapts a gradient with fixed numbers of inputs and results to [`BackwardAll`].
pub(super) struct Fixed<G, const N: usize, const M: usize>(pub(super) G);

impl<const N: usize, const M: usize, G: BackwardMany<N, M>> BackwardAll for Fixed<G, N, M> {
    fn op(&self) -> &'static str {
        self.0.op()
    }

    fn moves(&self) -> bool {
        self.0.moves()
    }

    fn backward(self, dy: Vec<Option<Tensor>>, need: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let op = self.op();
        let dy = <[Option<Tensor>; M]>::try_from(dy).map_err(|_| miscounted(op))?;
        let need = <[bool; N]>::try_from(need).map_err(|_| miscounted(op))?;
        Ok(self.0.backward(dy, need)?.into())
    }
}

pub(super) fn miscounted(op: &'static str) -> Error {
    Error::value(op, "the numbers of inputs and results are not those that were recorded")
}
