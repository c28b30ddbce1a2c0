//! The log decay `g` and `β` of a Gated DeltaNet layer, from its projections.

pub(super) mod cpu;
mod entry;
mod gpu;
pub(crate) mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::{F32, FLOATS, SAME};
use alluvium_core::{Arg, BackwardMany, Contract, Device, Result, Tensor, tape};

/// The contract of `gdn_gate`.
static CONTRACT: Contract = Contract {
    op: "gdn_gate",
    args: &[
        Arg::new("a", "R.. G", FLOATS),
        Arg::new("b", "R.. G", SAME),
        Arg::new("a_log", "G", F32),
        Arg::new("dt_bias", "G", F32),
    ],
    rules: &[],
};

/// The results of [`gdn_gate`].
#[derive(Clone, Debug)]
pub struct Gates {
    /// The natural logarithm of the decay, f32, at most 0.
    pub g: Tensor,
    /// The step size of the correction, f32, in (0, 1).
    pub beta: Tensor,
}

/// The gates of the gated delta rule: `g = −e^{a_log} · softplus(a + dt_bias)` and `beta = σ(b)`.
///
/// In f32 whatever the dtype of `a` and `b`; `softplus(x) = ln(1 + eˣ)` without overflow.
///
/// | tensor             | shape   | dtype          | gradient |
/// |--------------------|---------|----------------|----------|
/// | `a`, `b`           | `R.. G` | f32, f16, bf16 | yes      |
/// | `a_log`, `dt_bias` | `G`     | f32            | yes      |
/// | `g`, `beta`        | `R.. G` | f32            |          |
///
/// The backward pass keeps the arguments and `g`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
///
/// # Source
/// Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464; the decay is that of Mamba2, arXiv:2405.21060. Same values as
/// `compute_g` in mlx-lm, which returns `e^g`.
pub fn gdn_gate(a: &Tensor, b: &Tensor, a_log: &Tensor, dt_bias: &Tensor) -> Result<Gates> {
    let dims = CONTRACT.check(&[a, b, a_log, dt_bias])?;
    let Gates { g, beta } = match a.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, [a, b, a_log, dt_bias], dims['R'])?,
        Device::Gpu(gpu) => gpu::forward(gpu, [a, b, a_log, dt_bias])?,
    };
    let grad = || Grad { a: a.detach(), a_log: a_log.detach(), dt_bias: dt_bias.detach(), g: g.clone(), b: b.detach() };
    let [g, beta] = tape::record_many([a, b, a_log, dt_bias], [g.clone(), beta.clone()], grad)?;
    Ok(Gates { g, beta })
}

/// With `x = a + dt_bias`: `da = −e^{a_log} σ(x) dg`, `ddt_bias = Σ da`, `da_log = Σ g dg`, `db = σ(b) σ(−b) dβ`.
struct Grad {
    a: Tensor,
    a_log: Tensor,
    dt_bias: Tensor,
    g: Tensor,
    b: Tensor,
}

impl BackwardMany<4, 2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: [Option<Tensor>; 2], need: [bool; 4]) -> Result<[Option<Tensor>; 4]> {
        match self.a.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, dy.each_ref().map(Option::as_ref), need),
            Device::Gpu(gpu) => gpu::backward(gpu, &self, dy.each_ref().map(Option::as_ref), need),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decay_of_large_inputs_neither_overflows_nor_vanishes() {
        let device = Device::cpu();
        let row = |data: &[f32]| Tensor::from_slice(data, [3], &device).unwrap();
        let (a, zero) = (row(&[-80.0, 0.0, 300.0]), row(&[0.0; 3]));
        let gates = gdn_gate(&a.reshape([1, 3]).unwrap(), &a.reshape([1, 3]).unwrap(), &zero, &zero).unwrap();
        let g = gates.g.to_floats().unwrap();
        assert!((f64::from(g[0]) / -f64::exp(-80.0) - 1.0).abs() < 1e-5, "{g:?}");
        assert_eq!(g[1..], [-std::f32::consts::LN_2, -300.0]);
        assert_eq!(gates.beta.to_floats().unwrap()[1..], [0.5, 1.0]);
    }
}
