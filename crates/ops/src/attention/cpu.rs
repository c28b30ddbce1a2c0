//! Tiles of 64 keys by 64 queries that never leave the cache.
//!
//! A tile of scores lies with its keys down and its queries across: the keys are read as they lie, and the softmax runs
//! along the lanes of a register, one query each, without a sum across lanes.

mod backward;
mod decode;
mod forward;

pub(super) use backward::backward;

use super::{AttentionArgs, Mask, QueryBlock};
use alluvium_core::cpu::{Buffer, Cpu};
use alluvium_core::{DType, Dims, Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// The most queries of a tile.
const QUERIES: usize = 64;
/// The most keys of a tile.
const KEYS: usize = 64;
/// Queries of a tile are filled up to a multiple of this, so that every register is whole.
const WIDEST: usize = 16;

/// The result, and `log Σ exp` of the scores of each head and query, `[B, A, T]`.
pub(super) fn forward(cpu: &Cpu, args: &AttentionArgs<'_>, mask: &Mask, dims: &Dims) -> Result<(Tensor, Tensor)> {
    let (q, k, v) = (cpu.read(args.q)?, cpu.read(args.k)?, cpu.read(args.v)?);
    let sizes = AttentionSizes::new(dims);
    let (o, lse) = if sizes.tokens == 1 {
        decode::forward(cpu, [&q, &k, &v], args.scale, &sizes)?
    } else {
        let AttentionSizes { batch, tokens, heads, positions, shared, width } = sizes;
        let q = swapped(cpu, &q, [batch, tokens, heads, width])?;
        let k = swapped(cpu, &k, [batch, positions, shared, width])?;
        let v = swapped(cpu, &v, [batch, positions, shared, width])?;
        let (o, lse) = forward::forward(cpu, [&q, &k, &v], args.scale, mask, &sizes)?;
        (swapped(cpu, &o, [batch, heads, tokens, width])?, lse)
    };
    let shape = [sizes.batch, sizes.heads, sizes.tokens];
    Ok((cpu.tensor(o, args.q.shape(), args.q.dtype())?, cpu.tensor(lse, shape, DType::F32)?))
}

/// The contract's letters, by name.
struct AttentionSizes {
    batch: usize,
    tokens: usize,
    heads: usize,
    positions: usize,
    shared: usize,
    width: usize,
}

impl AttentionSizes {
    fn new(dims: &Dims) -> Self {
        let [batch, tokens, heads] = [dims['B'], dims['T'], dims['A']];
        AttentionSizes { batch, tokens, heads, positions: dims['S'], shared: dims['G'], width: dims['D'] }
    }

    /// Query heads that use the same keys.
    fn group(&self) -> usize {
        self.heads / self.shared
    }

    /// The keys or values of one query head, of memory that lies head by head.
    fn of_head<'a>(&self, x: &'a [f32], head: usize) -> &'a [f32] {
        let len = self.positions * self.width;
        &x[head / self.group() * len..][..len]
    }
}

/// `[B, N, M, D]` as `[B, M, N, D]`: from token by token to head by head, and back.
fn swapped(cpu: &Cpu, x: &[f32], [batch, n, m, width]: [usize; 4]) -> Result<Buffer<f32>> {
    debug_assert_eq!(x.len(), batch * n * m * width);
    let mut out = cpu.buffer(x.len())?;
    let grain = cpu.grain(batch * m, n * width);
    cpu.run(|| {
        out.par_chunks_mut(n * width).with_min_len(grain).enumerate().for_each(|(i, out)| {
            let (b, m_at) = (i / m, i % m);
            for (n_at, out) in out.chunks_exact_mut(width).enumerate() {
                out.copy_from_slice(&x[((b * n + n_at) * m + m_at) * width..][..width]);
            }
        });
    });
    Ok(out)
}

impl Mask {
    /// The tiles of keys that some queries of a block see.
    fn tiles(&self, block: &QueryBlock) -> impl Iterator<Item = Range<usize>> {
        let end = self.end(block.queries.end - 1);
        (block.sequence.start..end).step_by(KEYS).map(move |first| first..end.min(first + KEYS))
    }

    /// Sets the scores of keys after a query to −∞.
    fn hide(&self, keys: &Range<usize>, queries: &Range<usize>, scores: &mut [f32], stride: usize) {
        if keys.end <= self.end(queries.start) {
            return;
        }
        for (key, scores) in keys.clone().zip(scores.chunks_mut(stride)) {
            for (query, score) in queries.clone().zip(scores) {
                if key >= self.end(query) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Rows of queries as columns, times a factor, filled up with zeros to `stride` columns.
fn columns(rows: &[f32], width: usize, factor: f32, out: &mut [f32], stride: usize) {
    let count = rows.len() / width;
    for (d, out) in out.chunks_exact_mut(stride).take(width).enumerate() {
        for (i, out) in out[..count].iter_mut().enumerate() {
            *out = factor * rows[i * width + d];
        }
        out[count..].fill(0.0);
    }
}
