//! Products by the GPU's own library.

use super::plan::GemmPlan;
use super::{Gemm, GemmSizes, GpuMatrix, MatOrder, plan, stored};
use crate::quantized::gpu::expand;
use alluvium_core::gpu::{Gpu, Matrix, Product};
use alluvium_core::{DType, Result, Tensor};

/// The most bytes of a right side that is written once more in the dtype of the left one.
const COPY: usize = 1 << 30;

/// The right side in the dtype of the left one, where it is quantized or stored otherwise, and the library computes the
/// product from that. Nothing is lost: an f32 left side has it widened, a half-precision one meets it rounded once.
fn alike(gpu: &Gpu, args: &Gemm<'_>) -> Result<Option<Tensor>> {
    let Gemm { a, b, sizes, .. } = *args;
    let dtype = a.tensor.dtype();
    let elements = match b.packed {
        Some(q) => q.w.shape()[0] * b.stride,
        None => b.tensor.elements(),
    };
    if sizes.count > 1 || elements * dtype.size() > COPY {
        return Ok(None);
    }
    match b.packed {
        Some(q) if b.at == 0 => {
            // where there is no memory for it, the portable kernels take the words apart as they read them
            let Ok(dense) = gpu.empty([q.w.shape()[0], b.stride], dtype) else { return Ok(None) };
            expand(gpu, &q, &dense)?;
            Ok(Some(dense))
        }
        None if dtype == DType::F32 && b.tensor.dtype() != dtype => Ok(gpu.widen(b.tensor).ok()),
        _ => Ok(None),
    }
}

/// Computes a product by the GPU's own library, if it has one that takes it. A few lines stay with our kernel, which reads
/// the other side once.
pub(super) fn library(gpu: &Gpu, args: &Gemm<'_>) -> Result<bool> {
    let Gemm { a, mut b, c, sizes: GemmSizes { m, k, n, count }, alpha, beta } = *args;
    let few = || matches!(plan(args.sizes, stored(gpu, &a, &b)), GemmPlan::Gemv(_));
    if !gpu.has_library_products() || few() {
        return Ok(false);
    }
    let copy;
    if b.packed.is_some() || a.tensor.dtype() != b.tensor.dtype() {
        let Some(made) = alike(gpu, args)? else { return Ok(false) };
        copy = made;
        b = GpuMatrix { tensor: &copy, packed: None, ..b };
    }
    let [a, b, c] = [a, b, c].map(|GpuMatrix { tensor, at, stride, batch_stride, order, .. }| Matrix {
        tensor,
        at,
        stride,
        batch_stride,
        by_columns: order == MatOrder::ColumnMajor,
    });
    gpu.library_product(&Product { a, b, c, sizes: [m, k, n], count, alpha, beta })
}
