//! The gate that is nearly linear.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::common::map;
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, Result, Tensor};

/// What `silu` takes.
static CONTRACT: Contract = Contract { op: "silu", args: &[Arg::new("x", "R..", FLOATS)], rules: &[] };

/// `x·σ(x)`, element by element; also called swish.
///
/// `dx = dy · σ(x)·(1 + x·(1 − σ(x)))`. Finite for every finite `x`; −0 and infinity at the infinities, with slopes 0 and 1.
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
/// Hendrycks and Gimpel 2016, arXiv:1606.08415; Ramachandran et al. 2017, arXiv:1710.05941. Same as `mlx.nn.silu`.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    map::unary(&CONTRACT, x, cpu::Silu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::{Device, Tape};

    /// The values and the slopes at these points.
    fn at(points: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (tape, device) = (Tape::new(), Device::cpu());
        let x = tape.watch(&Tensor::from_slice(points, [points.len()], &device).unwrap());
        let y = silu(&x).unwrap();
        let grads = tape.backward(&[(&y, &Tensor::full([points.len()], 1.0, &device).unwrap())]).unwrap();
        (y.to_vec().unwrap(), grads.of(&x).unwrap().to_vec().unwrap())
    }

    #[test]
    fn the_infinities_behave_as_the_limits() {
        let (y, slope) = at(&[f32::NEG_INFINITY, f32::INFINITY]);
        assert_eq!((y, slope), (vec![0.0, f32::INFINITY], vec![0.0, 1.0]));
    }

    #[test]
    fn every_finite_number_has_a_finite_value_and_slope() {
        let points: Vec<f32> = (0..=u32::MAX >> 12).map(|bits| f32::from_bits(bits << 12)).collect();
        let points: Vec<f32> = points.into_iter().filter(|x| x.is_finite()).chain([f32::MAX, f32::MIN]).collect();
        let (y, slope) = at(&points);
        assert!(y.iter().zip(&slope).all(|(y, slope)| y.is_finite() && slope.is_finite()));
    }

    #[test]
    fn a_gradient_that_someone_else_holds_is_not_overwritten() {
        let (tape, device) = (Tape::new(), Device::cpu());
        let x = tape.watch(&Tensor::full([100], 1.0, &device).unwrap());
        let dy = Tensor::full([100], 2.0, &device).unwrap();
        let y = silu(&x).unwrap();
        let grads = tape.backward(&[(&y, &dy)]).unwrap();
        assert_eq!(dy.to_vec::<f32>().unwrap(), [2.0; 100]);
        assert!((grads.of(&x).unwrap().to_vec::<f32>().unwrap()[99] - 2.0 * 0.927_670_5).abs() < 1e-6);
    }
}
