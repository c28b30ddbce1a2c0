//! Three products of matrices. A weight in half precision is widened panel by panel: no copy of it exists.

use super::Grad;
use alluvium_core::cpu::{Buffer, Cpu, Mat, gemm};
use alluvium_core::{DType, Dims, Element, Result, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// Numbers of a half-precision weight that are widened at once: 4 MiB, which stay in a processor's cache.
const PANEL: usize = 1 << 20;
/// Numbers of a row that are widened at once, where there is one row to multiply.
const STRIP: usize = 256;

pub(super) fn forward(cpu: &Cpu, x: &Tensor, w: &Tensor, dims: &Dims) -> Result<Tensor> {
    let (rows, inner, outer) = (dims['R'], dims['I'], dims['O']);
    let xs = cpu.read(x)?;
    let mut y = cpu.buffer(rows * outer)?;
    match w.dtype() {
        DType::F32 => {
            let w = Mat::new(w.slice()?, outer, inner)?;
            gemm(cpu, 1.0, Mat::new(&xs, rows, inner)?, w.t(), 0.0, &mut y)?;
        }
        DType::BF16 if rows == 1 => one_row::<bf16>(cpu, &xs, w, &mut y, |w, to| {
            to.iter_mut().zip(w).for_each(|(to, w)| *to = f32::from_bits(u32::from(w.to_bits()) << 16));
        })?,
        DType::F16 if rows == 1 => one_row::<f16>(cpu, &xs, w, &mut y, |w, to| w.convert_to_f32_slice(to))?,
        _ => panels(cpu, w, |first, panel, len| {
            let mut part = cpu.buffer(rows * len)?;
            gemm(cpu, 1.0, Mat::new(&xs, rows, inner)?, panel.t(), 0.0, &mut part)?;
            for (y, part) in y.chunks_exact_mut(outer).zip(part.chunks_exact(len)) {
                y[first..first + len].copy_from_slice(part);
            }
            Ok(())
        })?,
    }
    cpu.tensor(y, dims.shape("R.. O")?, x.dtype())
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { x, w } = saved;
    let (outer, inner) = (w.shape()[0], w.shape()[1]);
    let rows = x.elements() / inner;
    let dys = cpu.read(dy)?;
    let [mut dx, mut dw] = [None, None];
    if need[0] {
        let mut to = cpu.buffer(rows * inner)?;
        if w.dtype() == DType::F32 {
            gemm(cpu, 1.0, Mat::new(&dys, rows, outer)?, Mat::new(w.slice()?, outer, inner)?, 0.0, &mut to)?;
        } else {
            panels(cpu, w, |first, panel, len| {
                let part = columns(cpu, &dys, outer, first, len)?;
                let before = if first == 0 { 0.0 } else { 1.0 };
                gemm(cpu, 1.0, Mat::new(&part, rows, len)?, panel, before, &mut to)
            })?;
        }
        dx = Some(cpu.tensor(to, x.shape(), x.dtype())?);
    }
    if need[1] {
        let mut to = cpu.buffer(outer * inner)?;
        let dys = Mat::new(&dys, rows, outer)?;
        gemm(cpu, 1.0, dys.t(), Mat::new(&cpu.read(x)?, rows, inner)?, 0.0, &mut to)?;
        dw = Some(cpu.tensor(to, w.shape(), w.dtype())?);
    }
    Ok([dx, dw])
}

/// Calls `f` with the first row of each panel of a weight, the panel in f32 and the number of its rows.
fn panels(cpu: &Cpu, w: &Tensor, mut f: impl FnMut(usize, Mat<'_>, usize) -> Result<()>) -> Result<()> {
    let w = w.detach();
    let (outer, inner) = (w.shape()[0], w.shape()[1]);
    let each = (PANEL / inner).clamp(1, outer);
    for first in (0..outer).step_by(each) {
        let len = each.min(outer - first);
        let rows = w.rows(first, len)?;
        f(first, Mat::new(&cpu.read(&rows)?, len, inner)?, len)?;
    }
    Ok(())
}

/// Columns `first .. first + len` of rows that are `width` long.
fn columns(cpu: &Cpu, from: &[f32], width: usize, first: usize, len: usize) -> Result<Buffer<f32>> {
    let mut to = cpu.buffer(from.len() / width * len)?;
    for (to, from) in to.chunks_exact_mut(len).zip(from.chunks_exact(width)) {
        to.copy_from_slice(&from[first..first + len]);
    }
    Ok(to)
}

/// A row times a half-precision weight is bound by reading the weight: it is widened in registers' reach.
fn one_row<T: Element>(
    cpu: &Cpu,
    x: &[f32],
    w: &Tensor,
    y: &mut [f32],
    widen: impl Fn(&[T], &mut [f32]) + Sync,
) -> Result<()> {
    let (w, level) = (w.slice::<T>()?, cpu.level());
    let grain = cpu.grain(y.len(), x.len());
    cpu.run(|| {
        y.par_iter_mut().zip(w.par_chunks_exact(x.len())).with_min_len(grain).for_each(|(y, w)| {
            let mut strip = [0.0; STRIP];
            let mut sum = 0.0;
            for (x, w) in x.chunks(STRIP).zip(w.chunks(STRIP)) {
                let strip = &mut strip[..w.len()];
                widen(w, strip);
                sum += dot(level, x, strip);
            }
            *y = sum;
        });
    });
    Ok(())
}

alluvium_core::simd! {
    /// `Σ a·b`, in a fixed order.
    fn dot<S>(a: &[f32], b: &[f32]) -> f32 {
        let n = a.len().min(b.len());
        let mut sums = [S::splat(0.0); 4];
        let step = 4 * S::LANES;
        let whole = n - n % step;
        for i in (0..whole).step_by(step) {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(&a[i + j * S::LANES..]).mul_add(S::load(&b[i + j * S::LANES..]), *sum);
            }
        }
        for i in (whole..n).step_by(S::LANES) {
            let end = n.min(i + S::LANES);
            sums[0] = S::load_head(&a[i..end]).mul_add(S::load_head(&b[i..end]), sums[0]);
        }
        ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum()
    }
}
