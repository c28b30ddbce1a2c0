//! One task for each query head: the weights of a tile are computed once and serve all three gradients.
//!
//! Heads that share keys write gradients of their own, which are added in the order of the heads afterwards.

use super::super::{Grad, Mask, QueryBlock};
use super::{AttentionSizes, KEYS, QUERIES, WIDEST, columns, swapped};
use crate::common::tile::{Left, Product, product};
use alluvium_core::cpu::simd::math::exp;
use alluvium_core::cpu::{Buffer, Cpu, Isa};
use alluvium_core::{Result, Tensor};
use rayon::prelude::*;

pub(in super::super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let Grad { q, k, v, o, lse, mask, scale, dims } = saved;
    let sizes = AttentionSizes::new(dims);
    let AttentionSizes { batch, tokens, heads, positions, shared, width } = sizes;
    let by_head = |x: &Tensor| swapped(cpu, &cpu.read(x)?, [batch, tokens, heads, width]);
    let by_shared = |x: &Tensor| swapped(cpu, &cpu.read(x)?, [batch, positions, shared, width]);
    let (qs, os, dos, ks, vs) = (by_head(q)?, by_head(o)?, by_head(dy)?, by_shared(k)?, by_shared(v)?);
    let lse = cpu.read(lse)?;
    let each = positions * width;
    // a gradient that is not needed has no memory
    let room = |i: usize, n: usize| cpu.buffer::<f32>(if need[i] { n } else { 0 });
    let (mut dq, mut dk, mut dv) = (room(0, qs.len())?, room(1, batch * heads * each)?, room(2, batch * heads * each)?);
    let (mut of_q, mut of_k, mut of_v) = (dq.chunks_mut(tokens * width), dk.chunks_mut(each), dv.chunks_mut(each));
    let mut tasks: Vec<[&mut [f32]; 3]> =
        (0..batch * heads).map(|_| [of_q.next(), of_k.next(), of_v.next()].map(Option::unwrap_or_default)).collect();
    let isa = cpu.isa();
    cpu.run(|| {
        tasks.par_iter_mut().enumerate().for_each(|(i, [dq, dk, dv])| {
            let rows = i * tokens * width..(i + 1) * tokens * width;
            let head = BackwardHead {
                q: &qs[rows.clone()],
                o: &os[rows.clone()],
                dy: &dos[rows],
                lse: &lse[i * tokens..(i + 1) * tokens],
                keys: sizes.of_head(&ks, i),
                values: sizes.of_head(&vs, i),
                scale: *scale,
                width,
            };
            dk.fill(0.0);
            dv.fill(0.0);
            let mut scratch = BackwardScratch::new(width);
            for block in mask.blocks(QUERIES) {
                let queries = &block.queries;
                let dq = if need[0] { &mut dq[queries.start * width..queries.end * width] } else { &mut [][..] };
                scratch.block(isa, &head, mask, &block, [&mut *dq, &mut *dk, &mut *dv]);
            }
        });
    });
    let like = |need: bool, d: &dyn Fn() -> Result<Buffer<f32>>, x: &Tensor| match need {
        true => cpu.tensor(d()?, x.shape(), x.dtype()).map(Some),
        false => Ok(None),
    };
    Ok([
        like(need[0], &|| swapped(cpu, &dq, [batch, heads, tokens, width]), q)?,
        like(need[1], &|| together(cpu, &dk, &sizes), k)?,
        like(need[2], &|| together(cpu, &dv, &sizes), v)?,
    ])
}

/// Adds what heads that share keys found, and lays it token by token.
fn together(cpu: &Cpu, each: &[f32], sizes: &AttentionSizes) -> Result<Buffer<f32>> {
    let &AttentionSizes { batch, positions, shared, width, .. } = sizes;
    let group = sizes.group();
    let mut out = cpu.buffer(batch * positions * shared * width)?;
    let grain = cpu.grain(batch * positions, shared * width * group);
    cpu.run(|| {
        out.par_chunks_mut(shared * width).with_min_len(grain).enumerate().for_each(|(row, out)| {
            let (b, s) = (row / positions, row % positions);
            for (head, out) in out.chunks_exact_mut(width).enumerate() {
                let first = (b * shared + head) * group;
                let of = |i: usize| &each[((first + i) * positions + s) * width..][..width];
                out.copy_from_slice(of(0));
                for i in 1..group {
                    out.iter_mut().zip(of(i)).for_each(|(out, x)| *out += x);
                }
            }
        });
    });
    Ok(out)
}

/// The inputs of one query head.
struct BackwardHead<'a> {
    q: &'a [f32],
    o: &'a [f32],
    dy: &'a [f32],
    lse: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    scale: f32,
    width: usize,
}

/// The scratch of one task.
struct BackwardScratch {
    q: Vec<f32>,
    dy: Vec<f32>,
    weights: Vec<f32>,
    grads: Vec<f32>,
    rows: GradientRows,
}

/// Two elements of each query.
struct GradientRows {
    lse: [f32; QUERIES],
    delta: [f32; QUERIES],
}

impl BackwardScratch {
    fn new(width: usize) -> Self {
        let zeros = |n: usize| vec![0.0; n * QUERIES];
        let rows = GradientRows { lse: [0.0; QUERIES], delta: [0.0; QUERIES] };
        BackwardScratch { q: zeros(width), dy: zeros(width), weights: zeros(KEYS), grads: zeros(KEYS), rows }
    }

    fn block(
        &mut self,
        isa: Isa,
        head: &BackwardHead<'_>,
        mask: &Mask,
        block: &QueryBlock,
        [dq, dk, dv]: [&mut [f32]; 3],
    ) {
        let BackwardScratch { q, dy, weights, grads, rows } = self;
        let queries = &block.queries;
        let (width, count) = (head.width, queries.len());
        let stride = count.next_multiple_of(WIDEST);
        let span = queries.start * width..queries.end * width;
        let (q_rows, dy_rows, o_rows) = (&head.q[span.clone()], &head.dy[span.clone()], &head.o[span]);
        columns(q_rows, width, head.scale, q, stride);
        columns(dy_rows, width, 1.0, dy, stride);
        rows.lse = [0.0; QUERIES];
        rows.lse[..count].copy_from_slice(&head.lse[queries.clone()]);
        let pairs = dy_rows.chunks_exact(width).zip(o_rows.chunks_exact(width));
        for (delta, (dy, o)) in rows.delta.iter_mut().zip(pairs) {
            *delta = dy.iter().zip(o).map(|(dy, o)| dy * o).sum();
        }
        for (i, keys) in mask.tiles(block).enumerate() {
            let n = keys.len();
            let span = keys.start * width..keys.end * width;
            let (k_rows, v_rows) = (&head.keys[span.clone()], &head.values[span.clone()]);
            let (weights, grads) = (&mut weights[..n * stride], &mut grads[..n * stride]);
            let across = [n, stride, width];
            product(isa, &Product::new(across, Left::rows(k_rows, width), q, stride), weights, stride);
            mask.hide(&keys, queries, weights, stride);
            if !dq.is_empty() || !dk.is_empty() {
                product(isa, &Product::new(across, Left::rows(v_rows, width), dy, stride), grads, stride);
            }
            differentiate(isa, weights, grads, stride, rows, head.scale);
            let down = [n, width, count];
            if !dv.is_empty() {
                let to_v = Product::new(down, Left::rows(weights, stride), dy_rows, width).onto(1.0);
                product(isa, &to_v, &mut dv[span.clone()], width);
            }
            if !dk.is_empty() {
                let to_k = Product::new(down, Left::rows(grads, stride), q_rows, width).onto(1.0);
                product(isa, &to_k, &mut dk[span], width);
            }
            if !dq.is_empty() {
                let to_q = Product::new([count, width, n], Left::columns(grads, stride), k_rows, width);
                product(isa, &to_q.onto(if i == 0 { 0.0 } else { 1.0 }), dq, width);
            }
        }
    }
}

alluvium_core::simd! {
    /// Scores become weights, and the gradients of the weights become those of the products of queries and keys.
    fn differentiate<S>(weights: &mut [f32], grads: &mut [f32], stride: usize, rows: &GradientRows, scale: f32) {
        let scale = S::splat(scale);
        for at in (0..stride).step_by(S::LANES) {
            let (lse, delta) = (S::load(&rows.lse[at..]), S::load(&rows.delta[at..]));
            for (weights, grads) in weights.chunks_exact_mut(stride).zip(grads.chunks_exact_mut(stride)) {
                let p = exp(S::load(&weights[at..]) - lse);
                p.store(&mut weights[at..]);
                (p * scale * (S::load(&grads[at..]) - delta)).store(&mut grads[at..]);
            }
        }
    }
}
