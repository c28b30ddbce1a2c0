//! Two products a chunk and head.

use super::{Grad, WyRepr, cuda};
use crate::delta::chunk::Write;
use crate::delta::gpu::{Chunks, Decay, Factor, WyProduct};
use alluvium_core::gpu::Gpu;
use alluvium_core::{DType, Result, Tensor};

pub(super) fn forward(gpu: &Gpu, args: &Grad) -> Result<WyRepr> {
    if cuda::takes(gpu, args) {
        return cuda::forward(gpu, args);
    }
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
    // a result that nothing was computed from has a gradient of zeros
    let seed = |dy: Option<Tensor>, width: usize| match dy {
        Some(dy) => gpu.widen(&dy),
        None => gpu.zeros([chunks.tokens, chunks.v_heads, width], DType::F32),
    };
    // dβ and dA come from both products; the others are left out where nothing needs them
    let is_of_both = need[2] || need[4];
    let da = chunks.empty(64)?;
    let mut write = Write::Set;
    let [mut dv, mut of_values, mut dk, mut of_keys] = [const { None }; 4];
    if is_of_both || need[1] {
        let (x, dy) = (gpu.widen(v)?, seed(du, v.shape().last())?);
        let values = WyProduct { a, x: &x, dy: &dy, gates: &gates, factor: Factor::Beta };
        [dv, of_values] = chunks.wy_product_backward(&values, &da, write)?.map(Some);
        write = Write::Add;
    }
    if is_of_both || need[0] || need[3] {
        let (x, dy) = (gpu.widen(k)?, seed(dw, k.shape().last())?);
        let keys = WyProduct { a, x: &x, dy: &dy, gates: &gates, factor: Factor::BetaFromStart };
        [dk, of_keys] = chunks.wy_product_backward(&keys, &da, write)?.map(Some);
    }
    let [mut dbeta, mut dg] = [const { None }; 2];
    if let Some(of_keys) = of_keys.filter(|_| need[2] || need[3]) {
        let of_values = of_values.map_or_else(|| gpu.zeros(of_keys.shape(), DType::F32), Ok)?;
        [dbeta, dg] = chunks.write_gates(&of_values, &of_keys, &gates)?.map(Some);
    }
    let stored = |x: &Tensor, like: &Tensor| gpu.convert(x, like.dtype())?.reshape(like.shape());
    let needed =
        |x: Option<Tensor>, like: &Tensor, need: bool| x.filter(|_| need).map(|x| stored(&x, like)).transpose();
    let dk = dk.filter(|_| need[0]).map(|dk| chunks.sum_over_v_heads(dk)).transpose()?;
    Ok([
        needed(dk, k, need[0])?,
        needed(dv, v, need[1])?,
        needed(dbeta, beta, need[2])?,
        needed(dg, g_cum, need[3])?,
        needed(Some(da), a, need[4])?,
    ])
}
