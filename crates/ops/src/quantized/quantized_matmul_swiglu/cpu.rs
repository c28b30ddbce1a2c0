//! The operations one after the other.

use crate::quantized::Quantized;
use crate::{quantized_matmul, split_in, swiglu};
use alluvium_core::{Result, Tensor};

pub(super) fn forward(x: &Tensor, q: &Quantized<'_>) -> Result<Tensor> {
    let rows = quantized_matmul(x, q)?;
    let (shape, half) = (rows.shape(), rows.shape().last() / 2);
    let [gate, up] = split_in(&rows, [half, half], shape.rank() - 1)?;
    swiglu(&gate, &up)
}
