//! Three products a step, on matrices that stay where they are.

use super::{COEFFICIENTS, EPS};
use crate::common::gpu::to_u32;
use crate::linalg::gpu::{Gemm, GemmSizes, GpuMatrix, gemm};
use crate::scale;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Dims, Result, Tensor};

static KERNEL: Kernel = crate::common::gpu::kernel("newton_schulz", &[include_str!("kernel.wgsl")]).reducing();

/// Invocations of a workgroup, and parts of the sum of squares at most.
const WG: usize = 256;

pub(super) fn forward(gpu: &Gpu, x: &Tensor, steps: usize, dims: &Dims) -> Result<Tensor> {
    let (rows, cols) = (dims['M'], dims['N']);
    let (short, long, tall) = (rows.min(cols), rows.max(cols), rows > cols);
    let mut now = divided(gpu, &gpu.widen(x)?)?;
    let [a, b, c] = COEFFICIENTS.map(|x| x as f32);
    for _ in 0..steps {
        let x = GpuMatrix::new(&now, cols, 0);
        let square = gpu.empty([short, short], DType::F32)?;
        let s = GpuMatrix::new(&square, short, 0);
        let sides = if tall { [x.t(), x] } else { [x, x.t()] };
        product(gpu, sides, s, GemmSizes { m: short, k: long, n: short, count: 1 }, [1.0, 0.0])?;
        let inner = scale(&square, b)?;
        let i = GpuMatrix::new(&inner, short, 0);
        product(gpu, [s, s], i, GemmSizes { m: short, k: short, n: short, count: 1 }, [c, 1.0])?;
        let next = scale(&now, a)?;
        let sides = if tall { [x, i] } else { [i, x] };
        let sizes = GemmSizes { m: rows, k: short, n: cols, count: 1 };
        product(gpu, sides, GpuMatrix::new(&next, cols, 0), sizes, [1.0, 1.0])?;
        now = next;
    }
    gpu.convert(&now, x.dtype())
}

fn product(
    gpu: &Gpu,
    [a, b]: [GpuMatrix<'_>; 2],
    c: GpuMatrix<'_>,
    sizes: GemmSizes,
    [alpha, beta]: [f32; 2],
) -> Result<()> {
    gemm(gpu, &Gemm { a, b, c, sizes, alpha, beta })
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    quads: u32,
    parts: u32,
    eps: f32,
    elements: u32,
}

/// The matrix over its norm.
fn divided(gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
    let quads = x.elements().div_ceil(4);
    let parts = quads.div_ceil(4 * WG).min(WG);
    let sums = gpu.empty([parts, 2], DType::F32)?;
    let y = gpu.empty(x.shape(), DType::F32)?;
    let params =
        Params { quads: to_u32(quads)?, parts: to_u32(parts)?, eps: EPS as f32, elements: to_u32(x.elements())? };
    let launch = |entry, binds: &[Bind<'_>], groups| {
        gpu.launch(&Launch {
            kernel: &KERNEL,
            entry,
            constants: &[("WG", WG as u32)],
            stored: &[],
            binds,
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(groups),
        })
    };
    launch("squares", &[Bind::All(x), Bind::All(&sums)], parts)?;
    launch("divided", &[Bind::All(x), Bind::All(&sums), Bind::All(&y)], quads.div_ceil(WG))?;
    Ok(y)
}
