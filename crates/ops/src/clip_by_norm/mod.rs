//! Gradient clipping: `x` scaled so that a norm stays below a bound.

mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{F32, FLOATS};
use alluvium_core::{Arg, Contract, Device, Error, Result, Tensor, tape};

/// The contract of `clip_by_norm`.
static CONTRACT: Contract =
    Contract { op: "clip_by_norm", args: &[Arg::new("x", "R..", FLOATS), Arg::new("norm", "", F32)], rules: &[] };

/// Why there is no gradient.
const WHY: &str = "it shortens gradients, which are not differentiated themselves";

/// `x · min(1, most / norm)`: `x` is given away and shortened in place where a device can.
///
/// `norm` is that of all gradients, as [`global_norm`](crate::global_norm) gives it; on a GPU it stays there. Where it
/// is NaN, so is every element of the result; where it is infinite, finite elements become 0.
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `x`    | `R..` | f32, f16, bf16 | no       |
/// | `norm` | `[]`  | f32            | no       |
/// | result | `R..` | that of `x`    |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when `most`
/// is not above 0; `NoGradient` when a traced tensor comes: detach it.
///
/// # Source
/// Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063. Same as `torch.nn.utils.clip_grad_norm_` without its 1e-6.
pub fn clip_by_norm(x: Tensor, norm: &Tensor, most: f32) -> Result<Tensor> {
    CONTRACT.check(&[&x, norm])?;
    if !(most > 0.0 && most.is_finite()) {
        return Err(Error::value(CONTRACT.op, format!("most is {most}, expected a finite number above 0")));
    }
    tape::no_gradient(CONTRACT.op, WHY, [&x, norm])?;
    match x.device() {
        Device::Cpu(_) => match norm.item()? {
            norm if norm <= most => Ok(x),
            norm => crate::scale(&x, most / norm),
        },
        Device::Gpu(gpu) => gpu::clip(&gpu.clone(), x, norm, most),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_of_nan_leaves_nothing_that_looks_clipped() {
        let mut devices = vec![Device::cpu()];
        devices.extend(alluvium_core::gpu::Gpu::builder().open_for_test().unwrap().map(Device::from));
        for device in &devices {
            let x = Tensor::from_slice(&[3.0f32, 0.0, -4.0], [3], device).unwrap();
            let clipped = |norm| clip_by_norm(x.clone(), &Tensor::full([], norm, device).unwrap(), 1.0);
            let nan = clipped(f32::NAN).unwrap().to_vec::<f32>().unwrap();
            assert!(nan.iter().all(|x| x.is_nan()), "{device:?}: {nan:?}");
            assert_eq!(clipped(f32::INFINITY).unwrap().to_vec::<f32>().unwrap(), [0.0, 0.0, -0.0], "{device:?}");
        }
    }

    #[test]
    fn what_is_short_enough_stays_as_it_is() {
        let device = Device::cpu();
        let x = Tensor::from_slice(&[3.0f32, 4.0], [2], &device).unwrap();
        let clipped = |norm, most| clip_by_norm(x.clone(), &Tensor::full([], norm, &device).unwrap(), most);
        assert_eq!(clipped(5.0, 5.0).unwrap().to_vec::<f32>().unwrap(), [3.0, 4.0]);
        assert_eq!(clipped(5.0, 2.5).unwrap().to_vec::<f32>().unwrap(), [1.5, 2.0]);
        for most in [0.0, -1.0, f32::INFINITY, f32::NAN] {
            let error = clipped(5.0, most).unwrap_err().to_string();
            assert_eq!(error, format!("clip_by_norm: most is {most}, expected a finite number above 0"));
        }
    }
}
