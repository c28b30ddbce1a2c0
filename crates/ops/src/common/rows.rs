//! Kernels that read each row twice: once for a statistic of the row, once to write the result.
//!
//! Rows are processed in blocks that stay in the first-level cache. Half precision is widened and rounded per block.

use super::stored::{BLOCK, Stored};
use super::writer::{Share, Target, Writer};
use alluvium_core::Result;
use alluvium_core::cpu::{Buffer, Cpu};
use std::ops::Range;

/// The most rows of a block.
pub(crate) const MOST: usize = BLOCK;

/// The number of rows of a block.
fn at_once(width: usize) -> usize {
    (BLOCK / width).max(1)
}

/// A part of a block that a kernel writes at once: its columns in every row, and its elements in the block.
pub(crate) struct RowBlock {
    pub(crate) columns: Range<usize>,
    pub(crate) elements: Range<usize>,
}

/// The parts of a block of `elements` elements: the whole block if rows are short, or parts of its only row.
pub(crate) fn pieces(width: usize, elements: usize) -> impl Iterator<Item = RowBlock> {
    let each = if width > BLOCK { BLOCK } else { elements };
    (0..elements).step_by(each).map(move |first| {
        let elements = first..elements.min(first + each);
        RowBlock { columns: if width > BLOCK { elements.clone() } else { 0..width }, elements }
    })
}

/// Runs `kernel(rows, one statistic of each, target)` over all rows, block by block, on all threads.
pub(crate) fn map<T: Stored>(
    cpu: &Cpu,
    width: usize,
    from: &[T],
    to: (Target<'_, T>, &mut [f32]),
    kernel: impl Fn(&[f32], &mut [f32], &mut Writer<'_, T>) + Sync,
) {
    let (mut target, mut stats) = to;
    let grain = cpu.grain(stats.len(), width).next_multiple_of(at_once(width));
    let run = |from: &[T], stats: &mut [f32], target: Target<'_, T>| {
        let mut wide = T::room(width * at_once(width));
        target.write_with(|target| {
            for (from, stats) in from.chunks(width * at_once(width)).zip(stats.chunks_mut(at_once(width))) {
                kernel(T::widen(from, &mut wide), stats, target);
            }
        });
    };
    if stats.len() <= grain {
        return run(from, stats, target);
    }
    let mut tasks = Vec::with_capacity(stats.len().div_ceil(grain));
    for from in from.chunks(grain * width) {
        tasks.push((from, stats.cut(from.len() / width), target.cut(from.len())));
    }
    cpu.each(tasks, |(from, stats, target)| run(from, stats, target));
}

/// Runs `kernel(rows, one statistic of each, target, sums)` over all rows. The kernel adds to `sums`; the total is
/// added in an order that depends on the shapes alone.
pub(crate) fn map_and_sum<T: Stored, const N: usize>(
    cpu: &Cpu,
    [width, sums]: [usize; 2],
    from: [&[T]; N],
    (stats, to): (&[f32], Target<'_, T>),
    kernel: impl Fn([&[f32]; N], &[f32], &mut Writer<'_, T>, &mut [f32]) + Sync,
) -> Result<Buffer<f32>> {
    super::partial_sums(cpu, stats.len(), sums, [to], |part, [to], sums| {
        let mut wide = from.map(|_| T::room(width * at_once(width)));
        to.write_with(|target| {
            for first in part.clone().step_by(at_once(width)) {
                let rows = first..part.end.min(first + at_once(width));
                let mut wide = wide.iter_mut();
                let block = from.map(|from| {
                    let wide = wide.next().map_or(&mut [][..], |wide| &mut wide[..]);
                    T::widen(&from[rows.start * width..rows.end * width], wide)
                });
                kernel(block, &stats[rows], target, sums);
            }
        });
    })
}

/// As [`map_and_sum`], with nothing to write but the `width` sums.
pub(crate) fn sum<T: Stored, const N: usize>(
    cpu: &Cpu,
    width: usize,
    from: [&[T]; N],
    stats: &[f32],
    kernel: impl Fn([&[f32]; N], &[f32], &mut [f32]) + Sync,
) -> Result<Buffer<f32>> {
    super::partial_sums(cpu, stats.len(), width, [&mut [][..]; 0], |part, _: [&mut [f32]; 0], sums| {
        let mut wide = from.map(|_| T::room(width * at_once(width)));
        for first in part.clone().step_by(at_once(width)) {
            let rows = first..part.end.min(first + at_once(width));
            let mut wide = wide.iter_mut();
            let block = from.map(|from| {
                let wide = wide.next().map_or(&mut [][..], |wide| &mut wide[..]);
                T::widen(&from[rows.start * width..rows.end * width], wide)
            });
            kernel(block, &stats[rows], sums);
        }
    })
}

alluvium_core::simd! {
    /// `1 / sqrt(factor · Σ x² + eps)` of each row.
    pub(crate) fn scales<S>(x: &[f32], factor: f32, eps: f32, scales: &mut [f32]) {
        let width = x.len() / scales.len();
        let whole = width - width % S::LANES;
        for (x, scale) in x.chunks_exact(width).zip(scales) {
            let tail = S::load_partial(&x[whole..]);
            let mut squares = tail * tail;
            for x in x[..whole].chunks_exact(S::LANES) {
                let x = S::load(x);
                squares = x.mul_add(x, squares);
            }
            *scale = (squares.sum() * factor + eps).sqrt().recip();
        }
    }
}
