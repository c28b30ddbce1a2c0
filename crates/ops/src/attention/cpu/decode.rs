//! A single query: bound by reading the keys and values, so each is read once for all the heads that share it.

use super::AttentionSizes;
use crate::common::tile::{Left, Product, product};
use alluvium_core::Result;
use alluvium_core::cpu::simd::math::exp;
use alluvium_core::cpu::{Buffer, Cpu};
use rayon::prelude::*;

/// Keys that one task takes: a fixed number, so that results do not depend on the threads.
const SPAN: usize = 256;

/// From memory as the tensors hold it, token by token; one query is the same head by head.
pub(super) fn forward(
    cpu: &Cpu,
    [q, k, v]: [&[f32]; 3],
    scale: f32,
    sizes: &AttentionSizes,
) -> Result<(Buffer<f32>, Buffer<f32>)> {
    let &AttentionSizes { positions, shared, width, .. } = sizes;
    let (group, isa) = (sizes.group(), cpu.isa());
    let spans = positions.div_ceil(SPAN);
    let tasks = sizes.batch * shared * spans;
    let (mut parts, mut stats) = (cpu.buffer(tasks * group * width)?, cpu.buffer(tasks * 2 * group)?);
    let mut weights = cpu.buffer(tasks * group * SPAN)?;
    let (mut o, mut lse) = (cpu.buffer(q.len())?, cpu.buffer(q.len() / width)?);
    cpu.run(|| {
        let tasks = parts.par_chunks_mut(group * width).zip(stats.par_chunks_mut(2 * group));
        let tasks = tasks.zip(weights.par_chunks_mut(group * SPAN)).enumerate();
        tasks.for_each(|(task, ((part, stats), weights))| {
            let (b, head, first) = (task / spans / shared, task / spans % shared, task % spans * SPAN);
            let at = ((b * positions + first) * shared + head) * width;
            let count = SPAN.min(positions - first);
            let rows = DecodeRows { width, stride: shared * width, count };
            let q = &q[(b * shared + head) * group * width..][..group * width];
            score(isa, q, &k[at..], &rows, scale, weights);
            for (row, stats) in weights.chunks_exact_mut(SPAN).zip(stats.chunks_exact_mut(2)) {
                (stats[0], stats[1]) = exp_sub_max(isa, &mut row[..count]);
            }
            let p = Product::new([group, width, count], Left::rows(weights, SPAN), &v[at..], rows.stride);
            product(isa, &p, part, width);
        });
        o.par_chunks_mut(group * width).zip(lse.par_chunks_mut(group)).enumerate().for_each(|(i, (o, lse))| {
            let parts = &parts[i * spans * group * width..][..spans * group * width];
            let stats = &stats[i * spans * 2 * group..][..spans * 2 * group];
            for (j, (o, lse)) in o.chunks_exact_mut(width).zip(lse).enumerate() {
                let part = |span: usize| &parts[(span * group + j) * width..][..width];
                let stat = |span: usize| (stats[(span * group + j) * 2], stats[(span * group + j) * 2 + 1]);
                *lse = merge(spans, part, stat, o);
            }
        });
    });
    Ok((o, lse))
}

/// Puts the spans of one head together, in order.
fn merge<'a>(
    spans: usize,
    part: impl Fn(usize) -> &'a [f32],
    stat: impl Fn(usize) -> (f32, f32),
    o: &mut [f32],
) -> f32 {
    let max = (0..spans).map(|span| stat(span).0).fold(f32::NEG_INFINITY, f32::max);
    let weight = |span: usize| (stat(span).0 - max).exp();
    let sum: f32 = (0..spans).map(|span| stat(span).1 * weight(span)).sum();
    o.fill(0.0);
    for span in 0..spans {
        let weight = weight(span) / sum;
        o.iter_mut().zip(part(span)).for_each(|(o, x)| *o += weight * x);
    }
    max + sum.ln()
}

/// The rows of one head's keys.
struct DecodeRows {
    width: usize,
    stride: usize,
    count: usize,
}

alluvium_core::simd! {
    /// `weights[head][key] = scale · q[head]·k[key]`.
    fn score<S>(q: &[f32], keys: &[f32], rows: &DecodeRows, scale: f32, weights: &mut [f32]) {
        let width = rows.width;
        for key in 0..rows.count {
            let k = &keys[key * rows.stride..][..width];
            for (q, weights) in q.chunks(4 * width).zip(weights.chunks_mut(4 * SPAN)) {
                let heads = q.len() / width;
                let mut sums = [S::splat(0.0); 4];
                for d in (0..width).step_by(S::LANES) {
                    let end = width.min(d + S::LANES);
                    let k = S::load_partial(&k[d..end]);
                    for (head, sum) in sums.iter_mut().take(heads).enumerate() {
                        *sum = S::load_partial(&q[head * width + d..head * width + end]).mul_add(k, *sum);
                    }
                }
                for (head, sum) in sums.iter().take(heads).enumerate() {
                    weights[head * SPAN + key] = scale * sum.sum();
                }
            }
        }
    }

    /// Scores become weights relative to the largest; returns that and the sum of the weights.
    fn exp_sub_max<S>(scores: &mut [f32]) -> (f32, f32) {
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for scores in scores.chunks_mut(S::LANES) {
            exp(S::load_partial(scores) - S::splat(max)).store_partial(scores);
        }
        let sums = scores.chunks(S::LANES).fold(S::splat(0.0), |sum, scores| sum + S::load_partial(scores));
        (max, sums.sum())
    }
}
