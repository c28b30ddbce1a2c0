//! Products with the states and inside the chunks.

use super::Grad;
use crate::delta::gpu::{Chunks, Decay, Outputs, Weight};
use alluvium_core::gpu::Gpu;
use alluvium_core::tape::accumulate;
use alluvium_core::{Result, Tensor};

/// The states chunk by chunk, whatever row they are of.
fn states(chunks: &Chunks, args: &Grad) -> Result<Tensor> {
    let shape = args.h.shape();
    args.h.reshape([chunks.count(), shape[2], shape[3], shape[4]])
}

pub(super) fn forward(gpu: &Gpu, args: &Grad) -> Result<Tensor> {
    let chunks = Chunks::of(gpu, args.layout)?;
    let gates = chunks.gates(&args.g_cum, Decay::Summed, None)?;
    let (q, k, v_new) = (gpu.widen(&args.q)?, gpu.widen(&args.k)?, gpu.widen(&args.v_new)?);
    let h = states(&chunks, args)?;
    let o = chunks.output(&Outputs { q: &q, k: &k, v_new: &v_new, h: &h, gates: &gates, scale: args.scale })?;
    gpu.convert(&o, args.v_new.dtype())?.reshape(args.v_new.shape())
}

pub(super) fn backward(gpu: &Gpu, args: &Grad, dy: &Tensor, need: [bool; 5]) -> Result<[Option<Tensor>; 5]> {
    let chunks = Chunks::of(gpu, args.layout)?;
    let gates = chunks.gates(&args.g_cum, Decay::Summed, None)?;
    let (q, k, v_new) = (gpu.widen(&args.q)?, gpu.widen(&args.k)?, gpu.widen(&args.v_new)?);
    let h = states(&chunks, args)?;
    let of = Outputs { q: &q, k: &k, v_new: &v_new, h: &h, gates: &gates, scale: args.scale };
    let [of_q, of_k, ..] = need;
    let found = chunks.output_gradient(&of, &gpu.widen(dy)?, [of_q, of_k])?;
    let dg = || {
        let [_, inside] = chunks.row_sums(&found.dp, &found.qk, &gates, Weight::One)?;
        accumulate(inside, &found.from_start)
    };
    let stored = |x: &Tensor, like: &Tensor| gpu.convert(x, like.dtype())?.reshape(like.shape());
    Ok([
        need[0].then(|| stored(&chunks.sum_over_v_heads(found.dq)?, &args.q)).transpose()?,
        need[1].then(|| stored(&chunks.sum_over_v_heads(found.dk)?, &args.k)).transpose()?,
        need[2].then(|| stored(&found.dv_new, &args.v_new)).transpose()?,
        need[3].then(|| stored(&found.dh, &args.h)).transpose()?,
        need[4].then(|| stored(&dg()?, &args.g_cum)).transpose()?,
    ])
}
