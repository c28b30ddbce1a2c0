//! Gradients through quantized rows, a panel of them as floats at a time.

use super::Codes;
use alluvium_core::Result;
use alluvium_core::cpu::{Cpu, MatRef, gemm};
use rayon::prelude::*;
use std::ops::Range;

/// Elements of the gradient of the matrix that are in memory at once.
const PANEL: usize = 1 << 19;

/// Adds to the gradients of the scales and biases of the rows `w` what `dw = dyᵀ · x` means for them.
pub(crate) fn scale_gradients(
    cpu: &Cpu,
    codes: &Codes<'_>,
    w: Range<usize>,
    [dy, x]: [&[f32]; 2],
    [dscales, dbiases]: [&mut [f32]; 2],
) -> Result<()> {
    let (inner, outer, groups, isa) = (codes.layout.inner, w.len(), codes.layout.groups, cpu.isa());
    let rows = x.len() / inner;
    let each = (PANEL / inner).next_multiple_of(64).min(outer);
    let (mut panel, mut part) = (cpu.buffer(each * inner)?, cpu.buffer(each * rows)?);
    for first in (0..outer).step_by(each) {
        let count = each.min(outer - first);
        columns(dy, outer, first..first + count, &mut part[..rows * count]);
        let (a, b) = (MatRef::new(&part, rows, count)?.t(), MatRef::new(x, rows, inner)?);
        gemm(cpu, 1.0, a, b, 0.0, &mut panel[..count * inner])?;
        let grain = cpu.grain(count, inner);
        let own = first * groups..(first + count) * groups;
        cpu.run(|| {
            let dscales = dscales[own.clone()].par_chunks_mut(groups);
            let dbiases = dbiases[own].par_chunks_mut(groups);
            let all = panel.par_chunks(inner).zip(dscales.zip(dbiases)).with_min_len(grain).enumerate();
            all.for_each(|(i, (dw, (dscales, dbiases)))| {
                codes.fold(isa, w.start + first + i, dw, dscales, dbiases);
            });
        });
    }
    Ok(())
}

/// Columns `from` of rows that are `width` values wide.
fn columns(x: &[f32], width: usize, from: Range<usize>, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(from.len())) {
        out.copy_from_slice(&x[from.clone()]);
    }
}
