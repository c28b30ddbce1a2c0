//! Queries, keys and values of attention from the row of its projections.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use crate::Rope;
use alluvium_core::contract::{FLOATS, IDS, SAME};
use alluvium_core::{Arg, Contract, Device, Error, Result, Tensor, tape};

/// The contract of `qkv_norm_rope`.
static CONTRACT: Contract = Contract {
    op: "qkv_norm_rope",
    args: &[
        Arg::new("x", "R W", FLOATS),
        Arg::new("positions", "R", IDS),
        Arg::new("q_norm", "D", SAME).optional(),
        Arg::new("k_norm", "D", SAME).optional(),
    ],
    rules: &[],
};

/// The arguments of [`qkv_norm_rope`].
#[derive(Clone, Copy, Debug)]
pub struct QkvNormRopeArgs<'a> {
    /// The projections of each token, `R W`: those of all query heads, each followed by its gate where there are gates,
    /// then all keys, then all values.
    pub x: &'a Tensor,
    /// The position of each token, `R`.
    pub positions: &'a Tensor,
    /// The weights of the norms of queries and keys, `D` each; none where heads are not normalized.
    pub norms: Option<[&'a Tensor; 2]>,
    /// The epsilon of the norms.
    pub eps: f32,
    /// The heads of a row.
    pub heads: AttentionHeads,
    /// The rotation of queries and keys.
    pub rope: Rope,
}

/// The heads of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionHeads {
    /// Query heads, `A`.
    pub queries: usize,
    /// Key and value heads, `G`.
    pub kv: usize,
    /// Elements of a head, `D`.
    pub dim: usize,
    /// Whether each query head has a gate.
    pub gated: bool,
}

/// The results of [`qkv_norm_rope`].
#[derive(Clone, Debug)]
pub struct QkvHeads {
    /// Queries, `R A D`.
    pub q: Tensor,
    /// Keys, `R G D`.
    pub k: Tensor,
    /// Values, `R G D`.
    pub v: Tensor,
    /// The sigmoid of the gates, `R A D`, where there are gates.
    pub gate: Option<Tensor>,
}

/// Cuts rows of attention's projections into heads, normalizes and rotates queries and keys, and takes the sigmoid of gates.
///
/// The same as [`rms_norm`](crate::rms_norm) and [`rope`](crate::rope) of the queries and of the keys, and
/// [`sigmoid`](crate::sigmoid) of the gates, in one launch on a GPU.
///
/// | tensor             | shape                          | dtype          | gradient |
/// |--------------------|--------------------------------|----------------|----------|
/// | `x`                | `R W`, `W = A D (+ A D) + 2 G D` | f32, f16, bf16 | no       |
/// | `positions`        | `R`                            | u32            |          |
/// | `q_norm`, `k_norm` | `D`                            | that of `x`    | no       |
/// | `q`, `gate`        | `R A D`                        | that of `x`    |          |
/// | `k`, `v`           | `R G D`                        | that of `x`    |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold; `Value` when `W` is not
/// that of `heads`, `eps` is negative or not finite, or as [`rope`](crate::rope); `NoGradient` when an argument is traced.
///
/// # Source
/// `Qwen3NextAttention` in mlx-lm; `fused_qk_norm_rope` of vLLM.
pub fn qkv_norm_rope(args: QkvNormRopeArgs<'_>) -> Result<QkvHeads> {
    let QkvNormRopeArgs { x, positions, norms, eps, heads, rope } = args;
    let [q_norm, k_norm] = norms.map_or([None; 2], |norms| norms.map(Some));
    let all = [Some(x), Some(positions), q_norm, k_norm];
    let dims = CONTRACT.check(&all)?;
    let AttentionHeads { queries, kv, dim, gated } = heads;
    let parts = (if gated { 2usize } else { 1 }).saturating_mul(queries).saturating_add(kv.saturating_mul(2));
    if queries.min(kv).min(dim) == 0 || dims['W'] != parts.saturating_mul(dim) {
        let gates = if gated { "with gates" } else { "without gates" };
        let why = format!(
            "`x` has rows of {} elements, expected those of {queries} query heads {gates} and twice {kv} key heads of {dim}",
            dims['W']
        );
        return Err(Error::value(CONTRACT.op, why));
    }
    if norms.is_some() && dims['D'] != dim {
        return Err(Error::value(CONTRACT.op, format!("norms have {} elements, expected {dim}", dims['D'])));
    }
    if !(eps >= 0.0 && eps.is_finite()) {
        return Err(Error::value(CONTRACT.op, format!("eps is {eps}, expected a finite number, 0 or more")));
    }
    rope.check(dim)?;
    tape::no_gradient(CONTRACT.op, WHY, all)?;
    match x.device() {
        Device::Cpu(_) => cpu::forward(&args),
        Device::Gpu(gpu) => gpu::forward(gpu, &args),
    }
}

/// Why there is no gradient.
const WHY: &str = "it is for generation; the operations that it joins have gradients";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pairs, RopeScaling};

    #[test]
    fn a_row_of_other_heads_is_refused_with_the_sizes() {
        let device = Device::cpu();
        let x = Tensor::full([1, 20], 1.0, &device).unwrap();
        let positions = Tensor::from_slice(&[0u32], [1], &device).unwrap();
        let rope = Rope { theta: 1e4, dims: 2, scaling: RopeScaling::None, pairs: Pairs::Halves };
        let heads = AttentionHeads { queries: 2, kv: 1, dim: 4, gated: true };
        let args = QkvNormRopeArgs { x: &x, positions: &positions, norms: None, eps: 0.0, heads, rope };
        assert_eq!(
            qkv_norm_rope(args).unwrap_err().to_string(),
            "qkv_norm_rope: `x` has rows of 20 elements, expected those of 2 query heads with gates and twice 1 key heads of 4"
        );
        let heads = AttentionHeads { queries: 3, gated: false, ..heads };
        assert_eq!(qkv_norm_rope(QkvNormRopeArgs { heads, ..args }).unwrap().k.shape().dims(), [1, 1, 4]);
    }
}
