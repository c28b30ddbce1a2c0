//! The operations one after the other: a token's heads are small beside the projections that made them.

use super::{AttentionHeads, QkvHeads, QkvNormRopeArgs};
use crate::{rms_norm, rope, sigmoid, split_in};
use alluvium_core::{Result, Tensor};

pub(super) fn forward(args: &QkvNormRopeArgs<'_>) -> Result<QkvHeads> {
    let &QkvNormRopeArgs { x, positions, norms, eps, heads, rope: turn } = args;
    let AttentionHeads { queries, kv, dim, gated } = heads;
    let rows = x.shape()[0];
    let of_queries = if gated { 2 * dim } else { dim };
    let [q, k, v] = split_in(x, [queries * of_queries, kv * dim, kv * dim], 1)?;
    let q = q.reshape([rows, queries, of_queries])?;
    let (q, gate) = if gated {
        let [q, gate] = split_in(&q, [dim, dim], 2)?;
        (q, Some(sigmoid(&gate)?))
    } else {
        (q, None)
    };
    let positions = positions.reshape([1, rows])?;
    let turned = |x: &Tensor, heads: usize, norm: Option<&Tensor>| {
        let x = x.reshape([1, rows, heads, dim])?;
        let x = if let Some(norm) = norm { rms_norm(&x, norm, eps)? } else { x };
        rope(&x, &positions, turn)?.reshape([rows, heads, dim])
    };
    let q = turned(&q, queries, norms.map(|[q, _]| q))?;
    let k = turned(&k, kv, norms.map(|[_, k]| k))?;
    Ok(QkvHeads { q, k, v: v.reshape([rows, kv, dim])?, gate })
}
