//! A few rows meet the words as they lie; the tiles of products take them apart as they bring them, both ways.

use super::Grad;
use crate::linalg::gpu::{Gemm, GemmSizes, GpuMatrix, few_rows, gemm, product};
use crate::quantized::gpu::{Path, dots, fold, panel, path, stretches, writes_any};
use crate::quantized::{Packed, PackedLayout, Quantized};
use alluvium_core::gpu::Gpu;
use alluvium_core::{DType, Dims, Result, Shape, Tensor};
use std::ops::Range;

pub(super) fn forward(gpu: &Gpu, x: &Tensor, q: &Quantized<'_>, layout: PackedLayout, dims: &Dims) -> Result<Tensor> {
    let (rows, outer, inner) = (dims['R'], dims['O'], layout.inner);
    let shape = dims.shape("R.. O")?;
    if let Path::Dots(few) = path(rows, few_rows(gpu), outer, inner) {
        let direct = writes_any(gpu, layout, outer);
        let y = gpu.empty(shape, if direct { x.dtype() } else { DType::F32 })?;
        dots(gpu, (q, layout), few, x, &y)?;
        return gpu.convert(&y, x.dtype());
    }
    let sizes = |n| GemmSizes { m: rows, k: inner, n, count: 1 };
    let a = GpuMatrix::new(x, inner, 0);
    let parts: Vec<Range<usize>> = stretches(gpu, layout, outer).collect();
    if parts.len() == 1 {
        return product(gpu, [a, GpuMatrix::packed(*q, inner).t()], sizes(outer), shape, x.dtype());
    }
    let (y, q) = (gpu.empty(shape, DType::F32)?, q.detach());
    for part in parts {
        let (own, c) = (q.rows(&part)?, GpuMatrix { at: part.start, ..GpuMatrix::new(&y, outer, 0) });
        let b = GpuMatrix::packed(own.quantized(), inner).t();
        gemm(gpu, &Gemm { a, b, c, sizes: sizes(part.len()), alpha: 1.0, beta: 0.0 })?;
    }
    gpu.convert(&y, x.dtype())
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let dx = need[0].then(|| through(gpu, saved, dy)).transpose()?;
    if !need[1] && !need[2] {
        return Ok([dx, None, None]);
    }
    let [dscales, dbiases] = saved.q.stored_as(gpu, scale_gradients(gpu, saved, dy)?, [need[1], need[2]])?;
    Ok([dx, dscales, dbiases])
}

/// `dy · w`.
fn through(gpu: &Gpu, saved: &Grad, dy: &Tensor) -> Result<Tensor> {
    let Grad { x, q, layout } = saved;
    let (outer, inner) = (q.w.shape()[0], layout.inner);
    let sizes = |k| GemmSizes { m: x.elements() / inner, k, n: inner, count: 1 };
    let a = GpuMatrix::new(dy, outer, 0);
    let parts: Vec<Range<usize>> = stretches(gpu, *layout, outer).collect();
    if parts.len() == 1 {
        return product(gpu, [a, GpuMatrix::packed(q.quantized(), inner)], sizes(outer), x.shape(), x.dtype());
    }
    let dx = gpu.zeros(x.shape(), DType::F32)?;
    for part in parts {
        let (own, a) = (q.rows(&part)?, GpuMatrix { at: part.start, ..a });
        let (b, c) = (GpuMatrix::packed(own.quantized(), inner), GpuMatrix::new(&dx, inner, 0));
        gemm(gpu, &Gemm { a, b, c, sizes: sizes(part.len()), alpha: 1.0, beta: 1.0 })?;
    }
    gpu.convert(&dx, x.dtype())
}

/// The gradients of all scales and biases, from a piece of `dyᵀ · x` at a time.
fn scale_gradients(gpu: &Gpu, saved: &Grad, dy: &Tensor) -> Result<[Tensor; 2]> {
    let Grad { x, q, layout } = saved;
    let (outer, inner) = (q.w.shape()[0], layout.inner);
    let each = panel(gpu.limits().binding, outer, inner);
    let empty = |shape: Shape| gpu.empty(shape, DType::F32);
    let (grads, dw) = ([empty(q.scales.shape())?, empty(q.scales.shape())?], empty([each, inner].into())?);
    for first in (0..outer).step_by(each) {
        let part = first..(first + each).min(outer);
        let (a, b) = (GpuMatrix { at: first, ..GpuMatrix::new(dy, outer, 0) }.t(), GpuMatrix::new(x, inner, 0));
        let sizes = GemmSizes { m: part.len(), k: x.elements() / inner, n: inner, count: 1 };
        gemm(gpu, &Gemm { a, b, c: GpuMatrix::new(&dw, inner, 0), sizes, alpha: 1.0, beta: 0.0 })?;
        let own: Packed = q.rows(&part)?;
        let [dscales, dbiases] = [grads[0].rows(first, part.len())?, grads[1].rows(first, part.len())?];
        fold(gpu, &own.quantized(), &dw.rows(0, part.len())?, [&dscales, &dbiases])?;
    }
    Ok(grads)
}
