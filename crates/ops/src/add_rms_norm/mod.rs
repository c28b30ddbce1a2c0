//! The sum of two tensors and its RMSNorm: the residual stream between two parts of a layer.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{FLOATS, SAME};
use alluvium_core::{Arg, Contract, Device, Error, Result, Tensor, tape};

/// The contract of `add_rms_norm`.
static CONTRACT: Contract = Contract {
    op: "add_rms_norm",
    args: &[Arg::new("x", "R.. D", FLOATS), Arg::new("r", "R.. D", SAME), Arg::new("w", "D", SAME)],
    rules: &[],
};

/// The results of [`add_rms_norm`].
#[derive(Clone, Debug)]
pub struct AddRmsNorm {
    /// The sum, `R.. D`.
    pub sum: Tensor,
    /// Its norm, `R.. D`.
    pub y: Tensor,
}

/// Adds `r` to the residual stream `x` and scales the rows of the sum to unit root-mean-square, then by `w`.
///
/// `sum = x + r`, rounded to the dtype, and `y = sum / sqrt(mean(sum²) + eps) * w` as [`rms_norm`](crate::rms_norm): on a
/// GPU one launch, which reads `x` and `r` once.
///
/// | tensor     | shape   | dtype          | gradient |
/// |------------|---------|----------------|----------|
/// | `x`, `r`   | `R.. D` | f32, f16, bf16 | no       |
/// | `w`        | `D`     | that of `x`    | no       |
/// | `sum`, `y` | `R.. D` | that of `x`    |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when `eps`
/// is negative or not finite; `NoGradient` when an argument is traced.
///
/// # Source
/// Zhang and Sennrich 2019, arXiv:1910.07467; `fused_add_rms_norm` of vLLM.
pub fn add_rms_norm(x: &Tensor, r: &Tensor, w: &Tensor, eps: f32) -> Result<AddRmsNorm> {
    let dims = CONTRACT.check(&[x, r, w])?;
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(Error::value(CONTRACT.op, format!("eps is {eps}, expected a finite number, 0 or more")));
    }
    tape::no_gradient(CONTRACT.op, WHY, [x, r, w])?;
    match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, [x, r, w], eps, &dims),
        Device::Gpu(gpu) => gpu::forward(gpu, [x, r, w], eps),
    }
}

/// Why there is no gradient.
const WHY: &str = "it is for generation; add and rms_norm have gradients";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_is_that_of_the_rounded_sum() {
        let device = Device::cpu();
        let half =
            |value| crate::cast(&Tensor::full([1, 2], value, &device).unwrap(), alluvium_core::DType::BF16).unwrap();
        // 257 is no bf16 number: the sum is 256
        let w = half(1.0).reshape([2]).unwrap();
        let AddRmsNorm { sum, y } = add_rms_norm(&half(256.0), &half(1.0), &w, 0.0).unwrap();
        assert_eq!((sum.to_floats().unwrap(), y.to_floats().unwrap()), (vec![256.0; 2], vec![1.0; 2]));
    }
}
