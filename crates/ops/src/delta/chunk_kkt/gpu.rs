//! Products of the keys, gated as they are stored.

use super::Grad;
use crate::delta::gpu::{Chunks, Decay, Keep};
use alluvium_core::gpu::Gpu;
use alluvium_core::{Result, Tensor};

pub(super) fn forward(gpu: &Gpu, args: &Grad) -> Result<Tensor> {
    let chunks = Chunks::of(gpu, args.layout)?;
    let gates = chunks.gates(&args.g_cum, Decay::Summed, Some(&args.beta))?;
    let (b, t, g) = (args.layout.batch, args.layout.tokens, args.layout.v_heads);
    chunks.kkt(&gpu.widen(&args.k)?, &gates)?.reshape([b, t, g, 64])
}

pub(super) fn backward(gpu: &Gpu, args: &Grad, dl: &Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let chunks = Chunks::of(gpu, args.layout)?;
    let gates = chunks.gates(&args.g_cum, Decay::Summed, Some(&args.beta))?;
    let m = chunks.gated(dl, &gates.gamma, Keep::Below)?;
    let k = gpu.widen(&args.k)?;
    let dk = || {
        let dk = chunks.kkt_gradient_of_keys(&k, &gates, &m)?;
        gpu.convert(&chunks.sum_over_v_heads(dk)?, args.k.dtype())?.reshape(args.k.shape())
    };
    let dk = need[0].then(dk).transpose()?;
    if !need[1] && !need[2] {
        return Ok([dk, None, None]);
    }
    let [dbeta, dg] = chunks.kkt_gradient_of_gates(&gates, &m, &chunks.scores(&k, &k)?)?;
    Ok([
        dk,
        need[1].then(|| dbeta.reshape(args.beta.shape())).transpose()?,
        need[2].then(|| dg.reshape(args.g_cum.shape())).transpose()?,
    ])
}
