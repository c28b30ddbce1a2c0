//! One task for each head and block of queries.

use super::super::{Mask, QueryBlock};
use super::{AttentionSizes, KEYS, QUERIES, WIDEST, columns};
use crate::common::tile::{Left, Product, product};
use alluvium_core::Result;
use alluvium_core::cpu::simd::math::exp;
use alluvium_core::cpu::{Buffer, Cpu, Isa};
use rayon::prelude::*;

/// From memory that lies head by head to a result that does, and `log Σ exp` of the scores.
pub(super) fn forward(
    cpu: &Cpu,
    [q, k, v]: [&[f32]; 3],
    scale: f32,
    mask: &Mask,
    sizes: &AttentionSizes,
) -> Result<(Buffer<f32>, Buffer<f32>)> {
    let (tokens, width, isa) = (sizes.tokens, sizes.width, cpu.isa());
    let (mut o, mut lse) = (cpu.buffer(q.len())?, cpu.buffer(q.len() / width)?);
    cpu.run(|| {
        let heads = o.par_chunks_mut(tokens * width).zip(lse.par_chunks_mut(tokens)).enumerate();
        heads.for_each(|(head, (o, lse))| {
            let (keys, values) = (sizes.of_head(k, head), sizes.of_head(v, head));
            let q = &q[head * tokens * width..][..tokens * width];
            by_block(mask, [o, lse], width).into_par_iter().for_each_init(
                || ForwardScratch::new(width),
                |scratch, (block, results)| {
                    let head = ForwardHead { q, keys, values, scale, width };
                    scratch.block(isa, &head, mask, &block, results);
                },
            );
        });
    });
    Ok((o, lse))
}

/// The blocks of queries of a head, each with its rows of the result and its `log Σ exp`.
fn by_block<'a>(
    mask: &Mask,
    [mut o, mut lse]: [&'a mut [f32]; 2],
    width: usize,
) -> Vec<(QueryBlock, [&'a mut [f32]; 2])> {
    let take = |from: &mut &'a mut [f32], count: usize| {
        let (taken, rest) = std::mem::take(from).split_at_mut(count);
        *from = rest;
        taken
    };
    let mut own = |block: QueryBlock| {
        let count = block.queries.len();
        (block, [take(&mut o, count * width), take(&mut lse, count)])
    };
    mask.blocks(QUERIES).map(&mut own).collect()
}

/// The inputs of one head.
struct ForwardHead<'a> {
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    scale: f32,
    width: usize,
}

/// The scratch of one thread.
struct ForwardScratch {
    q: Vec<f32>,
    scores: Vec<f32>,
    rows: QueryRows,
}

/// The streaming softmax of each query.
struct QueryRows {
    max: [f32; QUERIES],
    sum: [f32; QUERIES],
    /// The factor that rescales the sums of earlier tiles to the new maximum.
    keep: [f32; QUERIES],
}

impl ForwardScratch {
    fn new(width: usize) -> Self {
        let rows = QueryRows { max: [0.0; QUERIES], sum: [0.0; QUERIES], keep: [0.0; QUERIES] };
        ForwardScratch { q: vec![0.0; width * QUERIES], scores: vec![0.0; KEYS * QUERIES], rows }
    }

    fn block(&mut self, isa: Isa, head: &ForwardHead<'_>, mask: &Mask, block: &QueryBlock, [o, lse]: [&mut [f32]; 2]) {
        let ForwardScratch { q, scores, rows } = self;
        let queries = &block.queries;
        let (width, count) = (head.width, queries.len());
        let stride = count.next_multiple_of(WIDEST);
        columns(&head.q[queries.start * width..queries.end * width], width, head.scale, q, stride);
        // finite, so that −∞ − max is no NaN where a query sees nothing of a tile
        rows.max = [f32::MIN; QUERIES];
        rows.sum = [0.0; QUERIES];
        for (i, keys) in mask.tiles(block).enumerate() {
            let span = keys.start * width..keys.end * width;
            let scores = &mut scores[..keys.len() * stride];
            let left = Left::rows(&head.keys[span.clone()], width);
            product(isa, &Product::new([keys.len(), stride, width], left, q, stride), scores, stride);
            mask.hide(&keys, queries, scores, stride);
            exp_sub_max(isa, scores, stride, rows);
            let left = Left::columns(scores, stride);
            let p = Product::new([count, width, keys.len()], left, &head.values[span], width);
            if i > 0 {
                scale_rows(isa, &rows.keep, o, width);
            }
            product(isa, &p.onto(if i == 0 { 0.0 } else { 1.0 }), o, width);
        }
        rows.sum.iter_mut().zip(&rows.max).zip(lse).for_each(|((sum, max), lse)| {
            *lse = max + sum.ln();
            *sum = sum.recip();
        });
        scale_rows(isa, &rows.sum, o, width);
    }
}

alluvium_core::simd! {
    /// Scores become weights relative to the largest score so far.
    fn exp_sub_max<S>(scores: &mut [f32], stride: usize, rows: &mut QueryRows) {
        for at in (0..stride).step_by(S::LANES) {
            let before = S::load(&rows.max[at..]);
            let mut max = before;
            for scores in scores.chunks_exact(stride) {
                max = S::load(&scores[at..]).max(max);
            }
            let mut sum = S::splat(0.0);
            for scores in scores.chunks_exact_mut(stride) {
                let p = exp(S::load(&scores[at..]) - max);
                p.store(&mut scores[at..]);
                sum += p;
            }
            let keep = exp(before - max);
            S::load(&rows.sum[at..]).mul_add(keep, sum).store(&mut rows.sum[at..]);
            keep.store(&mut rows.keep[at..]);
            max.store(&mut rows.max[at..]);
        }
    }

    fn scale_rows<S>(by: &[f32], rows: &mut [f32], width: usize) {
        for (row, &by) in rows.chunks_exact_mut(width).zip(by) {
            if by != 1.0 {
                row.chunks_mut(S::LANES).for_each(|x| (S::load_partial(x) * S::splat(by)).store_partial(x));
            }
        }
    }
}
