//! Rotary positions of an attention layer.

use alluvium_core::{Error, Result, Tensor};
use alluvium_ops::{Rope, concat, rope, slice};

/// The rotary embedding of an attention layer. No elements to rotate (`dims` = 0) means that there is none.
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
        if self.rope.dims == 0 {
            return Ok(x.clone());
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Device;
    use alluvium_ops::{Pairs, RopeScaling};

    fn dynamic() -> Rotary {
        let rope = Rope { theta: 1e4, dims: 64, scaling: RopeScaling::None, pairs: Pairs::Halves };
        Rotary { rope, dynamic: Some(DynamicNtk { factor: 4.0, original: 64 }) }
    }

    #[test]
    fn the_base_grows_with_the_length_as_in_transformers() {
        // theta * ((factor * length / original) - (factor - 1)) ** (dims / (dims - 2)), by Python
        for (length, theta) in [(1, 1e4), (64, 1e4), (65, 10_645.798_9), (200, 102_155.811), (1_000, 678_827.53)] {
            let found = f64::from(dynamic().at(length).theta);
            assert!((found - theta).abs() < 1e-6 * theta, "{length}: {found}");
        }
    }

    #[test]
    fn each_sequence_of_a_batch_is_rotated_by_its_own_length() {
        let device = Device::cpu();
        let x = Tensor::full([2, 3, 1, 64], 1.0, &device).unwrap();
        let positions = Tensor::from_slice(&[5u32, 6, 7, 205, 206, 207], [2, 3], &device).unwrap();
        let both = dynamic().rotate(&x, &positions).unwrap();
        for (row, length) in [(0, 8), (1, 208)] {
            let alone = rope(&x.rows(row, 1).unwrap(), &positions.rows(row, 1).unwrap(), dynamic().at(length)).unwrap();
            let row = both.rows(row, 1).unwrap();
            assert_eq!(row.to_vec::<f32>().unwrap(), alone.to_vec::<f32>().unwrap());
        }
    }
}
