//! One token of a Gated DeltaNet layer, between its projections.

mod cpu;
mod entry;
mod gpu;
mod reference;
mod sizes;

pub(crate) use entry::OP;
pub use sizes::HeadLayout;

use alluvium_core::contract::{F32, FLOATS, SAME};
use alluvium_core::{Arg, Contract, Device, Error, Result, Rule, Tensor, tape};
use sizes::Sizes;

/// The contract of `gated_delta_net_step`.
static CONTRACT: Contract = Contract {
    op: "gated_delta_net_step",
    args: &[
        Arg::new("x", "B W", FLOATS),
        Arg::new("conv_state", "B L-1 C", SAME),
        Arg::new("filter", "C L", SAME),
        Arg::new("a_log", "G", F32),
        Arg::new("dt_bias", "G", F32),
        Arg::new("norm", "V", SAME),
        Arg::new("state", "B G V K", F32),
    ],
    rules: &[Rule::AtMostAxis('C', 'W')],
};

/// The arguments of [`gated_delta_net_step`].
#[derive(Debug)]
pub struct GatedDeltaNetStepArgs<'a> {
    /// The token's projections, `B W`, in the order that `layout` says: `W = 2 H K + 2 G V + 2 G`.
    pub x: &'a Tensor,
    /// The last inputs of the convolution, `B L-1 C`: all queries, all keys, all values.
    pub conv_state: &'a Tensor,
    /// The filters of the convolution, `C L` with `C = 2 H K + G V`.
    pub filter: &'a Tensor,
    /// The logarithm of the rate of each head's decay, `G`.
    pub a_log: &'a Tensor,
    /// The bias of each head's decay, `G`.
    pub dt_bias: &'a Tensor,
    /// The weight of the output's norm, `V`.
    pub norm: &'a Tensor,
    /// The recurrent state, `B G V K`; updated in place if it is not shared.
    pub state: Tensor,
    /// The order of the projections in `x`.
    pub layout: HeadLayout,
    /// Added to the sums of squares of queries and keys.
    pub l2_eps: f32,
    /// Added to the mean square of an output.
    pub norm_eps: f32,
    /// The factor of `σ(b)`: 1, or 2 where a state's eigenvalues may be negative.
    pub beta_scale: f32,
    /// The factor of the output, usually `K^-½`.
    pub scale: f32,
}

/// The results of [`gated_delta_net_step`].
#[derive(Clone, Debug)]
pub struct GatedDeltaNetStep {
    /// The output, `B G V`.
    pub y: Tensor,
    /// The last inputs of the convolution, `B L-1 C`.
    pub conv_state: Tensor,
    /// The recurrent state, `B G V K`.
    pub state: Tensor,
}

/// One token of each sequence through a Gated DeltaNet layer, from its input projections to the gated norm.
///
/// The same as, in this order, [`causal_conv1d`](crate::causal_conv1d) with SiLU of `q`, `k` and `v`,
/// [`l2_norm`](crate::l2_norm) of each head of `q` and `k`, [`gdn_gate`](crate::gdn_gate) of `a` and `b`,
/// [`gated_delta_step`](crate::gated_delta_step) and [`gated_rms_norm`](crate::gated_rms_norm) with `z`, in one launch on a
/// GPU. Everything between the arguments and the results is f32.
///
/// | tensor             | shape       | dtype          | gradient |
/// |--------------------|-------------|----------------|----------|
/// | `x`                | `B W`       | f32, f16, bf16 | no       |
/// | `conv_state`       | `B L-1 C`   | that of `x`    | no       |
/// | `filter`           | `C L`       | that of `x`    | no       |
/// | `a_log`, `dt_bias` | `G`         | f32            | no       |
/// | `norm`             | `V`         | that of `x`    | no       |
/// | `state`            | `B G V K`   | f32            | no       |
/// | `y`                | `B G V`     | that of `x`    |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when `C` and `W`
/// are not those of a number of key heads that divides `G`, `L` is 1, or an epsilon or factor is negative or not finite; `NoGradient`
/// when an argument is traced.
///
/// # Source
/// Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464; `GatedDeltaNet` of qwen3_5 and `Qwen3NextGatedDeltaNet` of
/// qwen3_next in mlx-lm.
pub fn gated_delta_net_step(args: GatedDeltaNetStepArgs<'_>) -> Result<GatedDeltaNetStep> {
    let GatedDeltaNetStepArgs { x, conv_state, filter, a_log, dt_bias, norm, state, .. } = &args;
    let all = [*x, conv_state, filter, a_log, dt_bias, norm, state];
    let dims = CONTRACT.check(&all)?;
    let sizes = Sizes::of(&dims, args.layout)?;
    let factors =
        [("l2_eps", args.l2_eps), ("norm_eps", args.norm_eps), ("beta_scale", args.beta_scale), ("scale", args.scale)];
    for (name, value) in factors {
        if !(value >= 0.0 && value.is_finite()) {
            return Err(Error::value(CONTRACT.op, format!("{name} is {value}, expected a finite number, 0 or more")));
        }
    }
    tape::no_gradient(CONTRACT.op, WHY, all)?;
    match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, args, &sizes),
        Device::Gpu(gpu) => gpu::forward(gpu, args, &sizes),
    }
}

/// Why there is no gradient.
const WHY: &str = "it overwrites its state; the operations that it joins have gradients";
