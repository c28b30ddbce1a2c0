//! The smooth ramp.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::common::map;
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, Result, Tensor};

/// What `softplus` takes.
static CONTRACT: Contract = Contract { op: "softplus", args: &[Arg::new("x", "R..", FLOATS)], rules: &[] };

/// `log(1 + eˣ)`, element by element, without overflow.
///
/// `dx = dy · σ(x)`. 0 and infinity at the infinities.
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
pub fn softplus(x: &Tensor) -> Result<Tensor> {
    map::unary(&CONTRACT, x, cpu::Softplus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::{Device, Tape};

    /// The values and the slopes at these points.
    fn at(points: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (tape, device) = (Tape::new(), Device::cpu());
        let x = tape.watch(&Tensor::from_slice(points, [points.len()], &device).unwrap());
        let y = softplus(&x).unwrap();
        let grads = tape.backward(&[(&y, &Tensor::full([points.len()], 1.0, &device).unwrap())]).unwrap();
        (y.to_vec().unwrap(), grads.of(&x).unwrap().to_vec().unwrap())
    }

    #[test]
    fn far_from_zero_it_is_the_ramp() {
        let (y, slope) = at(&[f32::NEG_INFINITY, f32::INFINITY, -1e4, 1e4]);
        assert_eq!((y, slope), (vec![0.0, f32::INFINITY, 0.0, 1e4], vec![0.0, 1.0, 0.0, 1.0]));
    }
}
