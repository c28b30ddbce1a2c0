//! Kernels over rows that pass twice over each: once for a number of the row, once to write.
//!
//! Rows come in blocks that stay in the first-level cache; half precision is widened and rounded block by block.

use super::stored::{BLOCK, Stored};
use super::writer::{Share, Target, Writer};
use alluvium_core::Result;
use alluvium_core::cpu::{Buffer, Cpu};
use std::ops::Range;

/// The most rows of a block.
pub(crate) const MOST: usize = BLOCK;

/// How many rows a kernel gets at once.
fn at_once(width: usize) -> usize {
    (BLOCK / width).max(1)
}

/// What a kernel writes at once: these columns of every row of a block, which are these values of the block.
pub(crate) struct RowBlock {
    pub(crate) columns: Range<usize>,
    pub(crate) numbers: Range<usize>,
}

/// The pieces of a block of `numbers`: all of it where rows are short, or stretches of its one row.
pub(crate) fn pieces(width: usize, numbers: usize) -> impl Iterator<Item = RowBlock> {
    let each = if width > BLOCK { BLOCK } else { numbers };
    (0..numbers).step_by(each).map(move |first| {
        let numbers = first..numbers.min(first + each);
        RowBlock { columns: if width > BLOCK { numbers.clone() } else { 0..width }, numbers }
    })
}

/// Runs `kernel(rows, one number of each, target)` over all rows, block by block, on all threads.
pub(crate) fn map<T: Stored>(
    cpu: &Cpu,
    width: usize,
    from: &[T],
    to: (Target<'_, T>, &mut [f32]),
    kernel: impl Fn(&[f32], &mut [f32], &mut Writer<'_, T>) + Sync,
) {
    let (mut target, mut numbers) = to;
    let grain = cpu.grain(numbers.len(), width).next_multiple_of(at_once(width));
    let run = |from: &[T], numbers: &mut [f32], target: Target<'_, T>| {
        let mut wide = T::room(width * at_once(width));
        target.write_with(|target| {
            for (from, numbers) in from.chunks(width * at_once(width)).zip(numbers.chunks_mut(at_once(width))) {
                kernel(T::widen(from, &mut wide), numbers, target);
            }
        });
    };
    if numbers.len() <= grain {
        return run(from, numbers, target);
    }
    let mut tasks = Vec::with_capacity(numbers.len().div_ceil(grain));
    for from in from.chunks(grain * width) {
        tasks.push((from, numbers.cut(from.len() / width), target.cut(from.len())));
    }
    cpu.each(tasks, |(from, numbers, target)| run(from, numbers, target));
}

/// Runs `kernel(rows, the number of each, target, sums)` likewise; what rows add to the sums, as many as are asked for,
/// is added up in an order that depends on the shapes alone.
pub(crate) fn map_and_sum<T: Stored, const N: usize>(
    cpu: &Cpu,
    [width, sums]: [usize; 2],
    from: [&[T]; N],
    (numbers, to): (&[f32], Target<'_, T>),
    kernel: impl Fn([&[f32]; N], &[f32], &mut Writer<'_, T>, &mut [f32]) + Sync,
) -> Result<Buffer<f32>> {
    super::partial_sums(cpu, numbers.len(), sums, [to], |part, [to], sums| {
        let mut wide = from.map(|_| T::room(width * at_once(width)));
        to.write_with(|target| {
            for first in part.clone().step_by(at_once(width)) {
                let rows = first..part.end.min(first + at_once(width));
                let mut wide = wide.iter_mut();
                let block = from.map(|from| {
                    let wide = wide.next().map_or(&mut [][..], |wide| &mut wide[..]);
                    T::widen(&from[rows.start * width..rows.end * width], wide)
                });
                kernel(block, &numbers[rows], target, sums);
            }
        });
    })
}

/// As [`map_and_sum`], with nothing to write but the `width` sums.
pub(crate) fn sum<T: Stored, const N: usize>(
    cpu: &Cpu,
    width: usize,
    from: [&[T]; N],
    numbers: &[f32],
    kernel: impl Fn([&[f32]; N], &[f32], &mut [f32]) + Sync,
) -> Result<Buffer<f32>> {
    super::partial_sums(cpu, numbers.len(), width, [&mut [][..]; 0], |part, _: [&mut [f32]; 0], sums| {
        let mut wide = from.map(|_| T::room(width * at_once(width)));
        for first in part.clone().step_by(at_once(width)) {
            let rows = first..part.end.min(first + at_once(width));
            let mut wide = wide.iter_mut();
            let block = from.map(|from| {
                let wide = wide.next().map_or(&mut [][..], |wide| &mut wide[..]);
                T::widen(&from[rows.start * width..rows.end * width], wide)
            });
            kernel(block, &numbers[rows], sums);
        }
    })
}

alluvium_core::simd! {
    /// `1 / sqrt(factor · Σ x² + eps)` of each row.
    pub(crate) fn scales<S>(x: &[f32], factor: f32, eps: f32, scales: &mut [f32]) {
        let width = x.len() / scales.len();
        let whole = width - width % S::LANES;
        for (x, scale) in x.chunks_exact(width).zip(scales) {
            let tail = S::load_head(&x[whole..]);
            let mut squares = tail * tail;
            for x in x[..whole].chunks_exact(S::LANES) {
                let x = S::load(x);
                squares = x.mul_add(x, squares);
            }
            *scale = (squares.sum() * factor + eps).sqrt().recip();
        }
    }
}
