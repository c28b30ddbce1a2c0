//! The gated delta rule for one token: decoding.

pub(super) mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::GatedDeltaOutput;
use alluvium_core::contract::{F32, FLOATS, SAME};
use alluvium_core::{Arg, Contract, Device, Error, Result, Rule, Tensor, tape};

/// The contract of `gated_delta_step`.
static CONTRACT: Contract = Contract {
    op: "gated_delta_step",
    args: &[
        Arg::new("q", "B H K", FLOATS),
        Arg::new("k", "B H K", SAME),
        Arg::new("v", "B G V", SAME),
        Arg::new("g", "B G", F32),
        Arg::new("beta", "B G", F32),
        Arg::new("state", "B G V K", F32),
    ],
    rules: &[Rule::MultipleOfAxis('G', 'H')],
};

/// The arguments of [`gated_delta_step`].
#[derive(Debug)]
pub struct GatedDeltaStepArgs<'a> {
    /// The token's query, `B H K`.
    pub q: &'a Tensor,
    /// Its key, `B H K`.
    pub k: &'a Tensor,
    /// Its value, `B G V`.
    pub v: &'a Tensor,
    /// The natural logarithm of its decay, `B G`.
    pub g: &'a Tensor,
    /// The step size of the correction, `B G`, in (0, 1).
    pub beta: &'a Tensor,
    /// The state, `B G V K`; updated in place if it is not shared.
    pub state: Tensor,
    /// The factor of the output, usually `K^-½`.
    pub scale: f32,
}

/// Moves states of the gated delta rule over one token each.
///
/// `S ← e^g S (I − β k kᵀ) + β v kᵀ`, `o = scale · S q`: the recurrence that
/// [`gated_delta_rule`](crate::gated_delta_rule) computes in chunks. The state is read and written once.
///
/// | tensor        | shape     | dtype          | gradient |
/// |---------------|-----------|----------------|----------|
/// | `q`, `k`      | `B H K`   | f32, f16, bf16 | no       |
/// | `v`           | `B G V`   | that of `q`    | no       |
/// | `g`, `beta`   | `B G`     | f32            | no       |
/// | `state`       | `B G V K` | f32            | no       |
/// | `o`           | `B G V`   | that of `q`    |          |
/// | `final_state` | `B G V K` | f32            |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold or `G` is no multiple
/// of `H`; `Value` when `scale` is not finite; `NoGradient` when an argument is traced.
///
/// # Source
/// Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464.
pub fn gated_delta_step(args: GatedDeltaStepArgs<'_>) -> Result<GatedDeltaOutput> {
    let GatedDeltaStepArgs { q, k, v, g, beta, state, scale } = &args;
    let dims = CONTRACT.check(&[*q, k, v, g, beta, state])?;
    if !scale.is_finite() {
        return Err(Error::value(CONTRACT.op, format!("scale is {scale}, expected a finite number")));
    }
    tape::no_gradient(CONTRACT.op, WHY, [*q, k, v, g, beta, state])?;
    match q.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, args, &dims),
        Device::Gpu(gpu) => gpu::forward(gpu, args, &dims),
    }
}

/// Why there is no gradient.
const WHY: &str = "it overwrites its state; gated_delta_rule has one";

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::DType;

    #[test]
    fn the_state_is_updated_in_place_only_if_it_is_not_shared() {
        let device = Device::cpu();
        let ones = |shape: &[usize]| Tensor::full(alluvium_core::Shape::new(shape).unwrap(), 1.0, &device).unwrap();
        let (q, v, g) = (ones(&[1, 1, 2]), ones(&[1, 1, 3]), ones(&[1, 1]));
        for shared in [false, true] {
            let state = Tensor::zeros([1, 1, 3, 2], DType::F32, &device).unwrap();
            let place = state.slice::<f32>().unwrap().as_ptr();
            let held = shared.then(|| state.clone());
            let args = GatedDeltaStepArgs { q: &q, k: &q, v: &v, g: &g, beta: &g, state, scale: 0.5 };
            let delta = gated_delta_step(args).unwrap();
            assert_eq!(delta.final_state.slice::<f32>().unwrap().as_ptr() == place, !shared);
            assert_eq!(delta.final_state.to_floats().unwrap(), [1.0; 6]);
            assert_eq!(delta.o.to_floats().unwrap(), [1.0; 3]);
            assert!(held.is_none_or(|held| held.to_floats().unwrap() == [0.0; 6]));
        }
    }
}
