//! RMSNorm with a SiLU gate.

mod cpu;
mod entry;
mod gpu;
pub(crate) mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{FLOATS, SAME};
use alluvium_core::{Arg, Backward, Contract, DType, Device, Error, Result, Tensor, tape};

/// The contract of `gated_rms_norm`.
static CONTRACT: Contract = Contract {
    op: "gated_rms_norm",
    args: &[Arg::new("x", "R.. D", FLOATS), Arg::new("z", "R.. D", SAME), Arg::new("w", "D", SAME).weight()],
    rules: &[],
};

/// Scales every row of `x` to unit root-mean-square, then by `w`, then by the gate `silu(z)`.
///
/// `y = x / sqrt(mean(x²) + eps) * w * z·σ(z)`: the mean over the last axis, all in f32 whatever the dtype.
///
/// | tensor | shape   | dtype          | gradient            |
/// |--------|---------|----------------|---------------------|
/// | `x`    | `R.. D` | f32, f16, bf16 | yes                 |
/// | `z`    | `R.. D` | that of `x`    | yes                 |
/// | `w`    | `D`     | that of `x`    | yes, not rounded    |
/// | result | `R.. D` | that of `x`    |                     |
///
/// The backward pass keeps `x`, `z`, `w` and one f32 a row.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when `eps`
/// is negative or not finite.
///
/// # Source
/// The output norm of Gated DeltaNet, Yang et al. 2024, arXiv:2412.06464; `Qwen3NextRMSNormGated` in mlx-lm.
pub fn gated_rms_norm(x: &Tensor, z: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
    let dims = CONTRACT.check(&[x, z, w])?;
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(Error::value(CONTRACT.op, format!("eps is {eps}, expected a finite number, 0 or more")));
    }
    let (y, rstd) = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, [x, z, w], eps, &dims)?,
        Device::Gpu(gpu) => gpu::forward(gpu, [x, z, w], eps)?,
    };
    tape::record([x, z, w], y, || {
        let dw_dtype = w.gradient_dtype();
        Grad { x: x.detach(), z: z.detach(), w: w.detach(), rstd, dw_dtype }
    })
}

/// With `r = 1 / rms(x)`, `s = silu(z)` and `u = dy·s·w`: `dx = r·(u − x·r²·mean(u·x))`, `dw = Σ_rows dy·s·x·r` and
/// `dz = dy·x·r·w·σ(z)·(1 + z·(1 − σ(z)))`.
struct Grad {
    x: Tensor,
    z: Tensor,
    w: Tensor,
    rstd: Tensor,
    dw_dtype: DType,
}

impl Backward<3> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
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
    fn rows_of_zeros_and_gates_far_out_stay_finite() {
        let device = Device::cpu();
        let tape = Tape::new();
        let x = tape.watch(&Tensor::zeros([1, 4], DType::F32, &device).unwrap());
        let gate = [-1e30f32, -100.0, 100.0, 1e30];
        let z = tape.watch(&Tensor::from_slice(&gate, [1, 4], &device).unwrap());
        let w = tape.watch(&Tensor::full([4], 1.0, &device).unwrap());
        let y = gated_rms_norm(&x, &z, &w, 1e-6).unwrap();
        let grads = tape.backward(&[(&y, &Tensor::full([1, 4], 1.0, &device).unwrap())]).unwrap();
        for found in [&y, grads.get(&x).unwrap(), grads.get(&z).unwrap(), grads.get(&w).unwrap()] {
            assert!(found.to_floats().unwrap().iter().all(|x| x.is_finite()), "{found:?}");
        }
    }
}
