//! Rotary positions of an attention layer.

use alluvium_core::{Error, Result, Tensor};
use alluvium_ops::{Rope, concat, rope, slice};

/// The rotary embedding of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// The rotation for sequences up to the length of the training.
    pub rope: Rope,
    /// Dynamic scaling for longer sequences.
    pub dynamic: Option<DynamicNtk>,
}

/// Dynamic NTK scaling: the base of the frequencies grows with the length of the sequence.
///
/// Source: `rope_type: dynamic` of transformers, `DynamicNTKScalingRoPE` of mlx-lm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DynamicNtk {
    /// The factor of the growth.
    pub factor: f32,
    /// The sequence length of the training, up to which the base does not grow.
    pub original: usize,
}

impl From<Rope> for Rotary {
    fn from(rope: Rope) -> Self {
        Rotary { rope, dynamic: None }
    }
}

impl Rotary {
    /// The rotation for a sequence of `length` tokens.
    pub fn at(&self, length: usize) -> Rope {
        let Some(DynamicNtk { factor, original }) = self.dynamic.filter(|dynamic| length > dynamic.original) else {
            return self.rope;
        };
        let (factor, dims) = (f64::from(factor), self.rope.dims as f64);
        let grown = factor * length as f64 / original as f64 - (factor - 1.0);
        let theta = f64::from(self.rope.theta) * grown.powf(dims / (dims - 2.0));
        Rope { theta: theta as f32, ..self.rope }
    }

    /// Rotates the heads of `x [B, T, H, D]` at `positions [B, T]`. With dynamic scaling each sequence of the batch is
    /// rotated by its own length, which is its last position plus one.
    ///
    /// # Errors
    /// As [`rope`].
    pub fn rotate(&self, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
        if self.dynamic.is_none() {
            return rope(x, positions, self.rope);
        }
        let row = |index| {
            let positions = positions.rows(index, 1)?;
            let last = positions.to_vec::<u32>()?.into_iter().max();
            let last = last.ok_or_else(|| Error::value("rope", "`positions` is empty, expected a token or more"))?;
            rope(&slice(x, 0, index..index + 1)?, &positions, self.at(last as usize + 1))
        };
        let rows = (0..x.shape()[0]).map(row).collect::<Result<Vec<Tensor>>>()?;
        concat(&rows.iter().collect::<Vec<_>>(), 0)
    }
}
