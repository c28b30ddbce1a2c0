//! The matrices of experts as kernels read them.

use crate::quantized::Quantized;
use crate::quantized::gpu::{constants, per_group};
use alluvium_core::gpu::Bind;
use alluvium_core::{DType, Tensor};

/// The matrices of all experts, `[E, O, I]`.
#[derive(Clone, Copy)]
pub(crate) enum ExpertWeights<'a> {
    /// Numbers in a floating dtype.
    Plain(&'a Tensor),
    /// Codes.
    Packed(&'a Quantized<'a>),
}

impl<'a> ExpertWeights<'a> {
    /// Which of a pair of kernels reads them: of values, or of codes.
    pub(super) fn number(self) -> usize {
        usize::from(matches!(self, ExpertWeights::Packed(_)))
    }

    /// The right side, scales and biases.
    pub(super) fn binds(self) -> [Bind<'a>; 3] {
        match self {
            ExpertWeights::Plain(w) => [Bind::All(w), Bind::Unused, Bind::Unused],
            ExpertWeights::Packed(q) => {
                let [scales, biases] = per_group(q);
                [Bind::All(q.w), scales, biases]
            }
        }
    }

    /// The constants of the text besides `own`, for rows of `inner` values.
    pub(super) fn constants(self, inner: usize, own: &[(&'static str, u32)]) -> Vec<(&'static str, u32)> {
        let mut all = own.to_vec();
        match self {
            ExpertWeights::Plain(_) => all.push(("B_ODD", u32::from(!inner.is_multiple_of(4)))),
            ExpertWeights::Packed(q) => all.extend(constants(q)),
        }
        all
    }

    /// The storage dtypes of both sides and, where they are bound, of the results.
    pub(super) fn stored(self, x: DType, y: Option<DType>) -> Vec<(&'static str, DType)> {
        let mut all = vec![("A", x)];
        if let ExpertWeights::Plain(w) = self {
            all.push(("B", w.dtype()));
        }
        all.extend(y.map(|y| ("C", y)));
        all
    }
}
