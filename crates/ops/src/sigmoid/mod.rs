//! The logistic function.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::common::map;
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, Result, Tensor};

/// What `sigmoid` takes.
static CONTRACT: Contract = Contract { op: "sigmoid", args: &[Arg::new("x", "R..", FLOATS)], rules: &[] };

/// `1 / (1 + e⁻ˣ)`, element by element.
///
/// `dx = dy · σ(x)·σ(−x)`. 0 and 1 at the infinities, with slope 0.
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
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    map::unary(&CONTRACT, x, cpu::Sigmoid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::{Device, Tape};

    /// The values and the slopes at these points.
    fn at(points: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (tape, device) = (Tape::new(), Device::cpu());
        let x = tape.watch(&Tensor::from_slice(points, [points.len()], &device).unwrap());
        let y = sigmoid(&x).unwrap();
        let grads = tape.backward(&[(&y, &Tensor::full([points.len()], 1.0, &device).unwrap())]).unwrap();
        (y.to_vec().unwrap(), grads.of(&x).unwrap().to_vec().unwrap())
    }

    #[test]
    fn the_infinities_behave_as_the_limits() {
        let (y, slope) = at(&[f32::NEG_INFINITY, f32::INFINITY, f32::MIN, f32::MAX]);
        assert_eq!((y, slope), (vec![0.0, 1.0, 0.0, 1.0], vec![0.0; 4]));
    }
}
