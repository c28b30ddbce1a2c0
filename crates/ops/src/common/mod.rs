//! Code that operations of several families share.

pub(crate) mod entries;
mod few;
pub(crate) mod gpu;
pub(crate) mod ids;
pub(crate) mod pieces;
pub(crate) mod rows;
pub(crate) mod stored;

mod sequences;
pub(crate) mod tasks;
pub(crate) mod tile;
pub(crate) mod writer;

pub(crate) use few::InlineVec;
pub(crate) use sequences::packed;

use alluvium_core::Result;
use alluvium_core::cpu::{Buffer, Cpu};
use std::ops::Range;
use writer::Share;

/// Sums over rows in a fixed number of parts, whatever the threads, so that results are bit-identical everywhere.
const PARTS: usize = 32;

/// Runs `work(rows, out rows, sums)` over parts of the rows on all threads; returns the parts' sums added in order.
///
/// Each of `out` has `rows` rows of equal width, or none. `sums` has `width` values, perhaps none, and starts at zero.
pub(crate) fn partial_sums<const M: usize, O: Share>(
    cpu: &Cpu,
    rows: usize,
    width: usize,
    mut out: [O; M],
    work: impl Fn(Range<usize>, [O; M], &mut [f32]) + Sync,
) -> Result<Buffer<f32>> {
    let each = rows.div_ceil(PARTS).max(1);
    let parts = rows.div_ceil(each);
    let widths = out.each_ref().map(|out| out.len() / rows.max(1));
    let mut sums = cpu.zeros::<f32>(parts * width)?;
    let mut tasks = Vec::with_capacity(parts);
    let mut rest = &mut sums[..];
    for i in 0..parts {
        let (sums, after) = std::mem::take(&mut rest).split_at_mut(width);
        rest = after;
        let part = i * each..rows.min((i + 1) * each);
        let mut widths = widths.iter();
        let own = out.each_mut().map(|out| out.cut(part.len() * widths.next().unwrap_or(&0)));
        tasks.push((part, own, sums));
    }
    cpu.each(tasks, |(part, own, sums)| work(part, own, sums));
    let mut total = cpu.zeros::<f32>(width)?;
    for part in sums.chunks_exact(width.max(1)) {
        total.iter_mut().zip(part).for_each(|(total, x)| *total += x);
    }
    Ok(total)
}
