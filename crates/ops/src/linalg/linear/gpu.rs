//! Three products of matrices.

use super::Grad;
use crate::linalg::gpu::{GemmSizes, GpuMatrix, product};
use alluvium_core::gpu::Gpu;
use alluvium_core::{Dims, Result, Tensor};

pub(super) fn forward(gpu: &Gpu, x: &Tensor, w: &Tensor, dims: &Dims) -> Result<Tensor> {
    let (m, k, n) = (dims['R'], dims['I'], dims['O']);
    let sides = [GpuMatrix::new(x, k, 0), GpuMatrix::new(w, k, 0).t()];
    product(gpu, sides, GemmSizes { m, k, n, count: 1 }, dims.shape("R.. O")?, x.dtype())
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { x, w, dw_dtype } = saved;
    let (outer, inner) = (w.shape()[0], w.shape()[1]);
    let rows = x.elements() / inner;
    let [dy, x_mat, w_mat] = [GpuMatrix::new(dy, outer, 0), GpuMatrix::new(x, inner, 0), GpuMatrix::new(w, inner, 0)];
    let [mut dx, mut dw] = [None, None];
    if need[0] {
        let sizes = GemmSizes { m: rows, k: outer, n: inner, count: 1 };
        dx = Some(product(gpu, [dy, w_mat], sizes, x.shape(), x.dtype())?);
    }
    if need[1] {
        let sizes = GemmSizes { m: outer, k: rows, n: inner, count: 1 };
        dw = Some(product(gpu, [dy.t(), x_mat], sizes, w.shape(), *dw_dtype)?);
    }
    Ok([dx, dw])
}
