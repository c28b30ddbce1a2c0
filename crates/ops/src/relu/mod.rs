//! The linear function that ends at zero.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::common::map;
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, Result, Tensor};

/// What `relu` takes.
static CONTRACT: Contract = Contract { op: "relu", args: &[Arg::new("x", "R..", FLOATS)], rules: &[] };

/// `max(x, 0)`, element by element.
///
/// `dx = dy` where `x > 0`, and 0 elsewhere, at 0 itself, too.
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `x`    | `R..` | f32, f16, bf16 | yes      |
/// | result | `R..` | that of `x`    |          |
///
/// The backward pass keeps `x`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
///
/// # Source
/// Nair and Hinton 2010. Same as `mlx.nn.relu`, slope at 0 included.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    map::unary(&CONTRACT, x, cpu::Relu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::{Device, Tape};

    /// The values and the slopes at these points.
    fn at(points: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (tape, device) = (Tape::new(), Device::cpu());
        let x = tape.watch(&Tensor::from_slice(points, [points.len()], &device).unwrap());
        let y = relu(&x).unwrap();
        let grads = tape.backward(&[(&y, &Tensor::full([points.len()], 1.0, &device).unwrap())]).unwrap();
        (y.to_vec().unwrap(), grads.of(&x).unwrap().to_vec().unwrap())
    }

    #[test]
    fn the_slope_is_one_above_zero_and_zero_from_there_on() {
        let tiny = f32::from_bits(1);
        let (y, slope) = at(&[f32::NEG_INFINITY, -tiny, -0.0, 0.0, tiny, 1e-20, f32::MAX, f32::INFINITY]);
        assert_eq!(y, [0.0, 0.0, 0.0, 0.0, tiny, 1e-20, f32::MAX, f32::INFINITY]);
        assert_eq!(slope, [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
    }
}
