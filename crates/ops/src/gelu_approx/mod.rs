//! The Gaussian error linear unit by a hyperbolic tangent.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::common::map;
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, Result, Tensor};

/// What `gelu_approx` takes.
static CONTRACT: Contract = Contract { op: "gelu_approx", args: &[Arg::new("x", "R..", FLOATS)], rules: &[] };

/// `x·(1 + tanh(u))/2` with `u = √(2/π)·(x + 0.044715·x³)`, element by element: near `gelu`, and what models mean that
/// were trained with it.
///
/// `dx = dy · (s + 2·x·s·(1 − s)·u′)` with `s = σ(2u)` and `u′ = √(2/π)·(1 + 0.134145·x²)`. 0 and infinity at the infinities, with
/// slopes 0 and 1.
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
/// Hendrycks and Gimpel 2016, arXiv:1606.08415. Same as `mlx.nn.gelu_approx`.
pub fn gelu_approx(x: &Tensor) -> Result<Tensor> {
    map::unary(&CONTRACT, x, cpu::GeluApprox)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::{Device, Tape};

    /// The values and the slopes at these points.
    fn at(points: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (tape, device) = (Tape::new(), Device::cpu());
        let x = tape.watch(&Tensor::from_slice(points, [points.len()], &device).unwrap());
        let y = gelu_approx(&x).unwrap();
        let grads = tape.backward(&[(&y, &Tensor::full([points.len()], 1.0, &device).unwrap())]).unwrap();
        (y.to_vec().unwrap(), grads.of(&x).unwrap().to_vec().unwrap())
    }

    #[test]
    fn the_infinities_behave_as_the_limits() {
        let (y, slope) = at(&[f32::NEG_INFINITY, f32::INFINITY, 0.0, f32::MIN, f32::MAX]);
        assert_eq!(y, [0.0, f32::INFINITY, 0.0, 0.0, f32::MAX]);
        assert_eq!(slope, [0.0, 1.0, 0.5, 0.0, 1.0]);
    }
}
