//! Pieces shared by kernels.

mod sequences;

pub(crate) use sequences::packed;

use alluvium_core::Result;
use alluvium_core::cpu::{Buffer, Cpu};
use rayon::prelude::*;
use std::ops::Range;

/// Sums over rows in a fixed number of parts, whatever the threads, so that the bits are the same everywhere.
const PARTS: usize = 32;

/// Runs `work(rows, out rows, sums)` over parts of the rows on all threads; returns the parts' sums added in order.
///
/// `out` has `rows` rows of equal width, or is empty. `sums` has `width` numbers and starts at zero.
pub(crate) fn partial_sums(
    cpu: &Cpu,
    rows: usize,
    width: usize,
    out: &mut [f32],
    work: impl Fn(Range<usize>, &mut [f32], &mut [f32]) + Sync,
) -> Result<Buffer<f32>> {
    let each = rows.div_ceil(PARTS).max(1);
    let parts = rows.div_ceil(each);
    let out_width = out.len() / rows.max(1);
    let mut sums = cpu.zeros::<f32>(parts * width)?;
    let part = |i: usize| i * each..rows.min((i + 1) * each);
    cpu.run(|| {
        if out.is_empty() {
            sums.par_chunks_mut(width).enumerate().for_each(|(i, sums)| work(part(i), &mut [], sums));
        } else {
            sums.par_chunks_mut(width)
                .zip(out.par_chunks_mut(each * out_width))
                .enumerate()
                .for_each(|(i, (sums, out))| work(part(i), out, sums));
        }
    });
    let mut total = cpu.zeros::<f32>(width)?;
    for part in sums.chunks_exact(width) {
        total.iter_mut().zip(part).for_each(|(total, x)| *total += x);
    }
    Ok(total)
}
