//! A tile of a state's rows goes through the chunks with its workgroup.

use super::{ChunkStateOutput, Grad};
use crate::delta::gpu::{Chunks, Decay, Direction, StateScan, StateSeeds, States};
use alluvium_core::gpu::Gpu;
use alluvium_core::{DType, Error, Result, Tensor};

pub(super) fn forward(gpu: &Gpu, args: &Grad) -> Result<ChunkStateOutput> {
    let Grad { k, w, u, g_cum, initial_state, layout, .. } = args;
    let chunks = Chunks::of(gpu, *layout)?;
    let gates = chunks.gates(g_cum, Decay::Summed, None)?;
    let (keys, values) = (k.shape().last(), u.shape().last());
    let h = chunks.empty_states(values, keys)?;
    let last = match initial_state {
        Some(state) => gpu.copied(state)?,
        None => gpu.zeros([layout.batch, layout.v_heads, values, keys], DType::F32)?,
    };
    let (w, k, x) = (gpu.widen(w)?, gpu.widen(k)?, gpu.widen(u)?);
    let passage = StateScan { way: Direction::Forward, left: &w, right: &k, x: &x, states: &h, last: &last };
    let v_new = gpu.convert(&chunks.pass(&passage, &gates)?, u.dtype())?.reshape(u.shape())?;
    let h = h.reshape([layout.batch, chunks.count() / layout.batch, layout.v_heads, values, keys])?;
    Ok(ChunkStateOutput { h, v_new, final_state: last })
}

pub(super) fn backward(
    gpu: &Gpu,
    args: &Grad,
    dy: [Option<Tensor>; 3],
    need: [bool; 5],
) -> Result<[Option<Tensor>; 5]> {
    let Grad { k, w, u, g_cum, initial_state, states, layout } = args;
    let Some((h, v_new)) = states else { return Err(Error::value("chunk_state", "the states were not kept")) };
    let chunks = Chunks::of(gpu, *layout)?;
    let gates = chunks.gates(g_cum, Decay::Summed, None)?;
    let (keys, values) = (k.shape().last(), u.shape().last());
    let [dh, dv_new, last] = dy;
    let per_chunk = [chunks.count(), layout.v_heads, values, keys];
    let copy = |dy: Option<Tensor>, shape: [usize; 4]| match dy {
        Some(dy) => gpu.copied(&dy)?.reshape(shape),
        None => gpu.zeros(shape, DType::F32),
    };
    let (dh, last) = (copy(dh, per_chunk)?, copy(last, [layout.batch, layout.v_heads, values, keys])?);
    let dv_new = match dv_new {
        Some(dy) => gpu.widen(&dy)?,
        None => gpu.zeros(u.shape(), DType::F32)?,
    };
    let dg = gpu.zeros(g_cum.shape(), DType::F32)?;
    let (k32, w32, v_new) = (gpu.widen(k)?, gpu.widen(w)?, gpu.widen(v_new)?);
    let h = h.reshape(per_chunk)?;
    let of = States { k: &k32, w: &w32, v_new: &v_new, h: &h, gates: &gates };
    let found = chunks.state_gradient(&of, &StateSeeds { dv_new: &dv_new, dh: &dh, last: &last })?;
    if need[3] {
        chunks.whole_decay(&dg, &found.to_end, [&h, &dh], &gates)?;
    }
    let stored = |x: &Tensor, like: &Tensor| gpu.convert(x, like.dtype())?.reshape(like.shape());
    Ok([
        need[0].then(|| stored(&chunks.sum_over_v_heads(found.dk)?, k)).transpose()?,
        need[1].then(|| stored(&found.dw, w)).transpose()?,
        need[2].then(|| stored(&found.du, u)).transpose()?,
        need[3].then_some(dg),
        (need[4] && initial_state.is_some()).then_some(last),
    ])
}
