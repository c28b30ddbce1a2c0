//! L2 normalization of rows.

mod cpu;
mod entry;
mod gpu;
pub(crate) mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Backward, Contract, Device, Error, Result, Tensor, tape};

/// The contract of `l2_norm`.
static CONTRACT: Contract = Contract { op: "l2_norm", args: &[Arg::new("x", "R.. D", FLOATS)], rules: &[] };

/// Scales every row of `x` to unit length.
///
/// `y = x / sqrt(Σ x² + eps)`: the sum over the last axis, in f32 whatever the dtype. A row of zeros stays zeros.
///
/// | tensor | shape   | dtype          | gradient |
/// |--------|---------|----------------|----------|
/// | `x`    | `R.. D` | f32, f16, bf16 | yes      |
/// | result | `R.. D` | that of `x`    |          |
///
/// The backward pass keeps `x` and one f32 a row.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold; `Value` when `eps` is not a
/// positive number: without it a row of zeros has no direction.
///
/// # Source
/// `q` and `k` of Gated DeltaNet, Yang et al. 2024, arXiv:2412.06464.
pub fn l2_norm(x: &Tensor, eps: f32) -> Result<Tensor> {
    let dims = CONTRACT.check(&[x])?;
    if !(eps > 0.0 && eps.is_finite()) {
        return Err(Error::value(CONTRACT.op, format!("eps is {eps}, expected a positive number")));
    }
    let (y, scale) = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, x, eps, &dims)?,
        Device::Gpu(gpu) => gpu::forward(gpu, x, eps)?,
    };
    tape::record([x], y, || Grad { x: x.detach(), scale })
}

/// With `ρ = (Σ x² + eps)^-½`: `dx = ρ·(dy − x·ρ²·Σ dy·x)`.
struct Grad {
    x: Tensor,
    scale: Tensor,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        match self.x.device() {
            Device::Cpu(cpu) => Ok([Some(cpu::backward(cpu, &self, &dy)?)]),
            Device::Gpu(gpu) => Ok([gpu::backward(gpu, &self, &dy)?]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::{DType, Tape};

    #[test]
    fn a_row_of_zeros_stays_zeros_with_a_finite_gradient() {
        let device = Device::cpu();
        let tape = Tape::new();
        let x = tape.watch(&Tensor::zeros([2, 8], DType::F32, &device).unwrap());
        let y = l2_norm(&x, 1e-6).unwrap();
        let grads = tape.backward(&[(&y, &Tensor::full([2, 8], 1.0, &device).unwrap())]).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [0.0; 16]);
        let derivatives = grads.get(&x).unwrap().to_vec::<f32>().unwrap();
        assert!(derivatives.iter().all(|derivative| (derivative - 1e3).abs() < 1e-2));
    }

    #[test]
    fn an_eps_of_zero_is_refused() {
        let error = l2_norm(&Tensor::full([1, 2], 1.0, &Device::cpu()).unwrap(), 0.0).unwrap_err().to_string();
        assert_eq!(error, "l2_norm: eps is 0, expected a positive number");
    }
}
