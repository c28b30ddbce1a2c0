//! Newton-Schulz orthogonalization, as Muon uses it.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, Device, Result, Tensor, tape};

/// The contract of `newton_schulz`.
static CONTRACT: Contract = Contract { op: "newton_schulz", args: &[Arg::new("x", "M N", FLOATS)], rules: &[] };

/// Why there is no gradient.
const WHY: &str = "a step of the optimizer is not differentiated";

/// The odd polynomial `a·s + b·s³ + c·s⁵` of the singular values: steep at 0, and near 1 afterwards rather than at it.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Added to the norm that the matrix is divided by.
const EPS: f64 = 1e-7;

/// Brings the singular values of a matrix near 1 and keeps its singular vectors: the update of Muon.
///
/// `X ← x / (‖x‖ + 1e-7)`, then `steps` times `X ← a·X + (b·A + c·A²)·X` with `A = X·Xᵀ` and the quintic's coefficients
/// 3.4445, −4.7750, 2.0315. Of a tall matrix the transpose is meant, so that `A` has the shorter side. Five steps are
/// usual; after them singular values lie between about 0.7 and 1.2. Arithmetic in f32.
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `x`    | `M N` | f32, f16, bf16 | no       |
/// | result | `M N` | that of `x`    |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold; `NoGradient` when `x` is
/// traced: detach it.
///
/// # Source
/// Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". Same values as
/// `zeropower_via_newtonschulz5` there, in f32, and as `mlx.optimizers.Muon`.
pub fn newton_schulz(x: &Tensor, steps: usize) -> Result<Tensor> {
    let dims = CONTRACT.check(&[x])?;
    tape::no_gradient(CONTRACT.op, WHY, [x])?;
    match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, x, steps, &dims),
        Device::Gpu(gpu) => gpu::forward(gpu, x, steps, &dims),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_singular_values_of_a_diagonal_come_near_one_and_keep_their_signs() {
        let n = 6;
        let mut data = vec![0.0f32; n * n];
        (0..n).for_each(|i| data[i * n + i] = [3.0, -1.0, 0.5, 2.0, -0.2, 0.1][i]);
        let x = Tensor::from_slice(&data, [n, n], &Device::cpu()).unwrap();
        let y = newton_schulz(&x, 5).unwrap().to_vec::<f32>().unwrap();
        for (i, (&y, x)) in y.iter().zip(data).enumerate() {
            let wanted = if i % (n + 1) == 0 { (0.6..1.3).contains(&(y * x.signum())) } else { y == 0.0 };
            assert!(wanted, "{i}: {y}");
        }
    }

    #[test]
    fn a_matrix_of_zeros_stays_zero() {
        let x = Tensor::full([3, 5], 0.0, &Device::cpu()).unwrap();
        assert_eq!(newton_schulz(&x, 5).unwrap().to_vec::<f32>().unwrap(), [0.0; 15]);
    }
}
