//! RMSNorm: root-mean-square normalization of rows.

pub(crate) mod cpu;
mod entry;
mod gpu;
pub(crate) mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{FLOATS, SAME};
use alluvium_core::{Arg, Backward, Contract, DType, Device, Error, Result, Tensor, tape};

/// The contract of `rms_norm`.
static CONTRACT: Contract =
    Contract { op: "rms_norm", args: &[Arg::new("x", "R.. D", FLOATS), Arg::new("w", "D", SAME).weight()], rules: &[] };

/// Scales every row of `x` to unit root-mean-square, then by `w`.
///
/// `y = x / sqrt(mean(x²) + eps) * w`: the mean is over the last axis and in f32 for every dtype.
///
/// | tensor | shape   | dtype          | gradient            |
/// |--------|---------|----------------|---------------------|
/// | `x`    | `R.. D` | f32, f16, bf16 | yes                 |
/// | `w`    | `D`     | that of `x`    | yes, not rounded    |
/// | result | `R.. D` | that of `x`    |                     |
///
/// The backward pass keeps `x`, `w` and one f32 a row.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when `eps`
/// is negative or not finite.
///
/// # Source
/// Zhang and Sennrich 2019, arXiv:1910.07467. Same values as `mlx.fast.rms_norm`.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
    let dims = CONTRACT.check(&[x, w])?;
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(Error::value(CONTRACT.op, format!("eps is {eps}, expected a finite number, 0 or more")));
    }
    let (y, rstd) = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, x, w, eps, &dims)?,
        Device::Gpu(gpu) => gpu::forward(gpu, x, w, eps)?,
    };
    tape::record([x, w], y, || Grad { x: x.detach(), w: w.detach(), rstd, dw_dtype: w.gradient_dtype() })
}

/// With `r = 1 / rms(x)` and `u = dy * w`:
/// `dx = r * (u - x * r² * mean(u * x))` and `dw = Σ_rows dy * x * r`.
struct Grad {
    x: Tensor,
    w: Tensor,
    rstd: Tensor,
    dw_dtype: DType,
}

impl Backward<2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        match self.x.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dy, need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, &dy, need),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Tape;

    #[test]
    fn a_row_of_zeros_stays_finite() {
        let device = Device::cpu();
        let tape = Tape::new();
        let x = tape.watch(&Tensor::zeros([2, 8], DType::F32, &device).unwrap());
        let w = tape.watch(&Tensor::full([8], 1.0, &device).unwrap());
        let y = rms_norm(&x, &w, 1e-6).unwrap();
        let grads = tape.backward(&[(&y, &Tensor::full([2, 8], 1.0, &device).unwrap())]).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [0.0; 16]);
        assert!(grads.get(&x).unwrap().to_vec::<f32>().unwrap().iter().all(|g| g.is_finite()));
    }

    #[test]
    fn a_negative_eps_is_refused() {
        let x = Tensor::full([1, 1], 1.0, &Device::cpu()).unwrap();
        let w = Tensor::full([1], 1.0, &Device::cpu()).unwrap();
        let error = rms_norm(&x, &w, -1.0).unwrap_err().to_string();
        assert_eq!(error, "rms_norm: eps is -1, expected a finite number, 0 or more");
    }
}
