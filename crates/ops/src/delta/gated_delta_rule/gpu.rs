//! Composed of the stages: what is inside a chunk is done for all chunks at once, and only the states go from one to
//! the next.

use super::{ChunkStates, GatedDeltaOutput, Grad, hopper};
use crate::delta::chunk::{CHUNK, Write};
use crate::delta::gpu::{
    ChunkGates, ChunkProduct, Chunks, Decay, Direction, Exponents, Factor, Outputs, ProductSide, Size, StateScan,
    StateSeeds, States, Weight, WyProduct,
};
use alluvium_core::gpu::Gpu;
use alluvium_core::tape::accumulate;
use alluvium_core::{DType, Result, Tensor};

/// Tokens of a chunk where only the final state has a gradient: what remains of that gradient is what a chunk's tokens
/// have not erased, and the difference of both has the rounding of what was there, so a chunk has few tokens.
const SHORT: usize = 4;

/// The parts of the chunks that do not depend on states.
struct IntraChunk {
    chunks: Chunks,
    gates: ChunkGates,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    w: Tensor,
    u: Tensor,
}

impl IntraChunk {
    fn new(gpu: &Gpu, args: &Grad, length: usize) -> Result<Self> {
        let chunks = Chunks::new(gpu, &args.sequences, [args.q.shape()[2], args.v.shape()[2]], length)?;
        let gates = chunks.gates(&args.g, Decay::Each, Some(&args.beta))?;
        let (q, k, v) = (gpu.widen(&args.q)?, gpu.widen(&args.k)?, gpu.widen(&args.v)?);
        let a = chunks.solve(&chunks.kkt(&k, &gates)?)?;
        let w = chunks.wy_product(&a, &k, &gates, Factor::BetaFromStart, DType::F32)?;
        let u = chunks.wy_product(&a, &v, &gates, Factor::Beta, DType::F32)?;
        Ok(IntraChunk { chunks, gates, q, k, v, a, w, u })
    }

    /// The states at the starts of the chunks, what the tokens write, and the states after the last tokens.
    fn states(&self, gpu: &Gpu, start: Option<&Tensor>) -> Result<[Tensor; 3]> {
        let (keys, values) = (self.k.shape().last(), self.v.shape().last());
        let h = self.chunks.empty_states(values, keys)?;
        let last = match start {
            Some(start) => gpu.copied(start)?,
            None => gpu.zeros([self.chunks.sequences(), self.chunks.v_heads, values, keys], DType::F32)?,
        };
        let passage =
            StateScan { way: Direction::Forward, left: &self.w, right: &self.k, x: &self.u, states: &h, last: &last };
        let v_new = self.chunks.pass(&passage, &self.gates)?;
        Ok([h, v_new, last])
    }

    /// The corrected values, from states that were kept.
    fn v_new(&self, gpu: &Gpu, h: &Tensor) -> Result<Tensor> {
        let (keys, values) = (self.k.shape().last(), self.v.shape().last());
        let v_new = gpu.copied(&self.u)?;
        let sides = [
            ProductSide::tokens(&self.chunks, &self.w, keys),
            ProductSide::state(h).t(),
            ProductSide::tokens(&self.chunks, &v_new, values),
        ];
        ChunkProduct::new([Size::Tokens, Size::Of(values), Size::Of(keys)], sides)
            .alpha(-1.0)
            .added()
            .run(&self.chunks)?;
        Ok(v_new)
    }
}

pub(super) fn forward(gpu: &Gpu, args: &Grad, keep: ChunkStates) -> Result<(GatedDeltaOutput, Option<Tensor>)> {
    if hopper::takes(gpu, args) {
        return Ok((hopper::forward(gpu, args)?, None));
    }
    let inside = IntraChunk::new(gpu, args, CHUNK)?;
    let IntraChunk { chunks, gates, q, k, .. } = &inside;
    let [h, v_new, final_state] = inside.states(gpu, args.initial_state.as_ref())?;
    let o = chunks.output(&Outputs { q, k, v_new: &v_new, h: &h, gates, scale: args.scale })?;
    let o = gpu.convert(&o, args.v.dtype())?.reshape(args.v.shape())?;
    let kept = match keep {
        ChunkStates::Keep => Some(h),
        ChunkStates::Recompute => None,
    };
    Ok((GatedDeltaOutput { o, final_state }, kept))
}

pub(super) fn backward(
    gpu: &Gpu,
    args: &Grad,
    [dy, last]: [Option<Tensor>; 2],
    need: [bool; 6],
) -> Result<[Option<Tensor>; 6]> {
    if let Some(dy) = dy.as_ref().filter(|_| hopper::takes(gpu, args)) {
        return hopper::backward(gpu, args, dy, last.as_ref(), need);
    }
    let length = if dy.is_some() { CHUNK } else { SHORT };
    let inside = IntraChunk::new(gpu, args, length)?;
    let IntraChunk { chunks, gates, q, k, v, a, w, .. } = &inside;
    let (h, v_new) = match args.states.as_ref().filter(|_| length == CHUNK) {
        Some(h) => (h.clone(), inside.v_new(gpu, h)?),
        None => {
            let [h, v_new, _] = inside.states(gpu, args.initial_state.as_ref())?;
            (h, v_new)
        }
    };
    let dy = match dy {
        Some(dy) => gpu.widen(&dy)?,
        None => gpu.zeros(v.shape(), DType::F32)?,
    };
    let last = match last {
        Some(last) => gpu.copied(&last)?,
        None => gpu.zeros([chunks.sequences(), chunks.v_heads, v.shape().last(), k.shape().last()], DType::F32)?,
    };
    let out = chunks.output_gradient(
        &Outputs { q, k, v_new: &v_new, h: &h, gates, scale: args.scale },
        &dy,
        [need[0], need[1]],
    )?;
    let seeds = StateSeeds { dv_new: &out.dv_new, dh: &out.dh, last: &last };
    let state = chunks.state_gradient(&States { k, w, v_new: &v_new, h: &h, gates }, &seeds)?;

    let [of_q, of_k, of_v, of_g, of_beta, of_start] = need;
    let stored = |x: &Tensor, like: &Tensor| gpu.convert(x, like.dtype())?.reshape(like.shape());
    let dq = of_q.then(|| stored(&chunks.sum_over_v_heads(out.dq)?, &args.q)).transpose()?;
    let start = (of_start && args.initial_state.is_some()).then_some(last);
    if !of_k && !of_v && !of_g && !of_beta {
        return Ok([dq, None, None, None, None, start]);
    }
    let da = chunks.empty(64)?;
    let values = WyProduct { a, x: v, dy: &state.du, gates, factor: Factor::Beta };
    let [dv, of_values] = chunks.wy_product_backward(&values, &da, Write::Set)?;
    let dv = of_v.then(|| stored(&dv, &args.v)).transpose()?;
    if !of_k && !of_g && !of_beta {
        return Ok([dq, None, dv, None, None, start]);
    }
    let keys = WyProduct { a, x: k, dy: &state.dw, gates, factor: Factor::BetaFromStart };
    let [dk, of_keys] = chunks.wy_product_backward(&keys, &da, Write::Add)?;
    let m = chunks.solve_gradient(a, &da, Some(gates))?;
    let dk = || {
        let dk =
            [&state.dk, &chunks.kkt_gradient_of_keys(k, gates, &m)?, &dk].into_iter().try_fold(out.dk, accumulate)?;
        stored(&chunks.sum_over_v_heads(dk)?, &args.k)
    };
    let dk = of_k.then(dk).transpose()?;
    if !of_g && !of_beta {
        return Ok([dq, dk, dv, None, None, start]);
    }
    let [dbeta, written] = chunks.write_gates(&of_values, &of_keys, gates)?;
    let kk = chunks.scores(k, k)?;
    let dg = || {
        let dg = chunks.empty(1)?;
        let ends = Some([&state.to_end, &chunks.whole([&h, &out.dh], gates)?]);
        let read = Exponents { x: &out.dp, y: &out.qk, weight: Weight::One, from_start: &out.from_start, ends };
        chunks.step_gradients(&read, gates, &dg, Write::Set)?;
        let inside = Exponents { x: &m, y: &kk, weight: Weight::Beta, from_start: &written, ends: None };
        chunks.step_gradients(&inside, gates, &dg, Write::Add)?;
        stored(&dg, &args.g)
    };
    let dbeta = || {
        let [dbeta_inside, _] = chunks.kkt_gradient_of_gates(gates, &m, &kk)?;
        stored(&accumulate(dbeta, &dbeta_inside)?, &args.beta)
    };
    Ok([dq, dk, dv, of_g.then(dg).transpose()?, of_beta.then(dbeta).transpose()?, start])
}
