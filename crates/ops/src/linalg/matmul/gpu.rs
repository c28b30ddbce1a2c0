//! One launch for all products, forward; one for each gradient.

use super::{Grad, MatmulSizes};
use crate::linalg::gpu::{self as gemm, GpuMatrix, product};
use alluvium_core::gpu::Gpu;
use alluvium_core::{Result, Shape, Tensor};

pub(super) fn forward(gpu: &Gpu, a: &Tensor, b: &Tensor, sizes: MatmulSizes, shape: Shape) -> Result<Tensor> {
    let MatmulSizes { m, k, n, .. } = sizes;
    let count = shape.elements() / (m * n);
    product(gpu, sizes.mats(a, b), gemm::GemmSizes { m, k, n, count }, shape, a.dtype())
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dc: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { a, b, sizes, dtypes } = saved;
    let MatmulSizes { m, k, n, transpose } = *sizes;
    let count = dc.elements() / (m * n);
    let [left, right] = sizes.mats(a, b);
    let dc = GpuMatrix::new(dc, n, m * n);
    let [mut da, mut db] = [None, None];
    if need[0] {
        let (sides, m, n) = if transpose.left() { ([right, dc.t()], k, m) } else { ([dc, right.t()], m, k) };
        da = Some(product(gpu, sides, gemm::GemmSizes { m, k: sizes.n, n, count }, a.shape(), dtypes[0])?);
    }
    if need[1] {
        let (sides, m, n) = if transpose.right() { ([dc.t(), left], n, k) } else { ([left.t(), dc], k, n) };
        db = Some(product(gpu, sides, gemm::GemmSizes { m, k: sizes.m, n, count }, b.shape(), dtypes[1])?);
    }
    Ok([da, db])
}

impl MatmulSizes {
    /// The two sides, as `[M, K]` and `[K, N]` however they are stored.
    fn mats<'a>(self, a: &'a Tensor, b: &'a Tensor) -> [GpuMatrix<'a>; 2] {
        let MatmulSizes { m, k, n, transpose } = self;
        let left = if transpose.left() { GpuMatrix::new(a, m, m * k).t() } else { GpuMatrix::new(a, k, m * k) };
        let right = if transpose.right() { GpuMatrix::new(b, k, k * n).t() } else { GpuMatrix::new(b, n, k * n) };
        [left, right]
    }
}
