//! Two products a chunk and head.

use super::{Grad, WyRepr};
use crate::delta::chunk::Write;
use crate::delta::gpu::{Chunks, Decay, Factor, WyProduct};
use alluvium_core::gpu::Gpu;
use alluvium_core::{Result, Tensor};

pub(super) fn forward(gpu: &Gpu, args: &Grad) -> Result<WyRepr> {
    let Grad { k, v, beta, g_cum, a, layout } = args;
    let chunks = Chunks::of(gpu, *layout)?;
    let gates = chunks.gates(g_cum, Decay::Summed, Some(beta))?;
    let dtype = k.dtype();
    let w = chunks.wy_product(a, &gpu.widen(k)?, &gates, Factor::BetaFromStart, dtype)?;
    let u = chunks.wy_product(a, &gpu.widen(v)?, &gates, Factor::Beta, dtype)?;
    let w_shape = [layout.batch, layout.tokens, layout.v_heads, k.shape().last()];
    Ok(WyRepr { w: gpu.convert(&w, dtype)?.reshape(w_shape)?, u: gpu.convert(&u, dtype)?.reshape(v.shape())? })
}

pub(super) fn backward(
    gpu: &Gpu,
    args: &Grad,
    [dw, du]: [Option<Tensor>; 2],
    need: [bool; 5],
) -> Result<[Option<Tensor>; 5]> {
    let Grad { k, v, beta, g_cum, a, layout } = args;
    let chunks = Chunks::of(gpu, *layout)?;
    let gates = chunks.gates(g_cum, Decay::Summed, Some(beta))?;
    let (k32, v32) = (gpu.widen(k)?, gpu.widen(v)?);
    // a result that nothing was computed from has a gradient of zeros
    let seed = |dy: Option<Tensor>, width: usize| match dy {
        Some(dy) => gpu.widen(&dy),
        None => gpu.zeros([chunks.tokens, chunks.v_heads, width], k32.dtype()),
    };
    let (dw, du) = (seed(dw, k.shape().last())?, seed(du, v.shape().last())?);
    let da = chunks.empty(64)?;
    let values = WyProduct { a, x: &v32, dy: &du, gates: &gates, factor: Factor::Beta };
    let [dv, of_values] = chunks.wy_product_backward(&values, &da, Write::Set)?;
    let keys = WyProduct { a, x: &k32, dy: &dw, gates: &gates, factor: Factor::BetaFromStart };
    let [dk, of_keys] = chunks.wy_product_backward(&keys, &da, Write::Add)?;
    let [dbeta, dg] = chunks.write_gates(&of_values, &of_keys, &gates)?;
    let stored = |x: &Tensor, like: &Tensor| gpu.convert(x, like.dtype())?.reshape(like.shape());
    Ok([
        need[0].then(|| stored(&chunks.sum_over_v_heads(dk)?, k)).transpose()?,
        need[1].then(|| stored(&dv, v)).transpose()?,
        need[2].then(|| stored(&dbeta, beta)).transpose()?,
        need[3].then(|| stored(&dg, g_cum)).transpose()?,
        need[4].then(|| stored(&da, a)).transpose()?,
    ])
}
