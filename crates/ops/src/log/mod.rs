//! The natural logarithm.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::common::map;
use alluvium_core::contract::{FLOATS, Fill};
use alluvium_core::{Arg, Contract, Result, Tensor};

/// What `log` takes.
static CONTRACT: Contract =
    Contract { op: "log", args: &[Arg::new("x", "R..", FLOATS).filled(Fill::Uniform(0.05, 8.0))], rules: &[] };

/// `log x`, element by element.
///
/// `dx = dy / x`. −infinity at 0, NaN below.
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
pub fn log(x: &Tensor) -> Result<Tensor> {
    map::unary(&CONTRACT, x, cpu::Log)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::{Device, Tape};

    /// The values and the slopes at these points.
    fn at(points: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (tape, device) = (Tape::new(), Device::cpu());
        let x = tape.watch(&Tensor::from_slice(points, [points.len()], &device).unwrap());
        let y = log(&x).unwrap();
        let grads = tape.backward(&[(&y, &Tensor::full([points.len()], 1.0, &device).unwrap())]).unwrap();
        (y.to_vec().unwrap(), grads.of(&x).unwrap().to_vec().unwrap())
    }

    #[test]
    fn the_limits_are_those_of_the_logarithm() {
        let (y, slope) = at(&[0.0, f32::INFINITY, 1.0]);
        assert_eq!((y, slope), (vec![f32::NEG_INFINITY, f32::INFINITY, 0.0], vec![f32::INFINITY, 0.0, 1.0]));
        assert!(at(&[-1.0]).0[0].is_nan());
    }
}
