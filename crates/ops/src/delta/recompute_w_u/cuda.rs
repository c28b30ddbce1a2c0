//! Both products of a chunk on NVIDIA's matrix units: bf16 factors, f32 sums.

use super::{Grad, WyRepr};
use crate::common::gpu::{MATRIX, NATIVE, to_u32};
use crate::delta::chunk::CHUNK;
use alluvium_core::gpu::{CudaArgument as Arg, CudaKernel, CudaLaunch, Gpu};
use alluvium_core::{DType, Result};

// SAFETY: `forward` gives the arguments of the declaration, with as many blocks as there are chunks and value heads.
static KERNEL: CudaKernel = unsafe { CudaKernel::new("recompute_w_u", &[NATIVE, MATRIX, include_str!("kernel.cu")]) };

/// The widths of heads that the kernel has registers for.
const WIDTHS: [usize; 2] = [64, 128];

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    tokens: u32,
    chunks: u32,
    key_heads: u32,
    value_heads: u32,
}

/// The texts of all variants, by name.
pub(super) fn sources() -> impl Iterator<Item = (String, String)> {
    WIDTHS.into_iter().map(|width| {
        let constants = [("WIDTH", width as u32)];
        (format!("{} WIDTH={width}", KERNEL.name), KERNEL.source(&constants))
    })
}

/// Whether the kernel computes these arguments.
pub(super) fn takes(gpu: &Gpu, args: &Grad) -> bool {
    let [keys, values] = [&args.k, &args.v].map(|x| x.shape().last());
    gpu.runs_cuda_kernels() && args.k.dtype() == DType::BF16 && keys == values && WIDTHS.contains(&keys)
}

pub(super) fn forward(gpu: &Gpu, args: &Grad) -> Result<WyRepr> {
    let Grad { k, v, beta, g_cum, a, layout } = args;
    let [k, v, a] = [gpu.at_16_bytes(k)?, gpu.at_16_bytes(v)?, gpu.at_16_bytes(a)?];
    let [beta, g_cum] = [gpu.at_16_bytes(beta)?, gpu.at_16_bytes(g_cum)?];
    let width = k.shape().last();
    let [w, u] = [gpu.empty(v.shape(), DType::BF16)?, gpu.empty(v.shape(), DType::BF16)?];
    let chunks = layout.tokens.div_ceil(CHUNK);
    let params = Params {
        tokens: to_u32(layout.tokens)?,
        chunks: to_u32(chunks)?,
        key_heads: to_u32(layout.k_heads)?,
        value_heads: to_u32(layout.v_heads)?,
    };
    gpu.launch_cuda(&CudaLaunch {
        kernel: &KERNEL,
        constants: &[("WIDTH", to_u32(width)?)],
        arguments: &[
            Arg::Read(&k),
            Arg::Read(&v),
            Arg::Read(&beta),
            Arg::Read(&g_cum),
            Arg::Read(&a),
            Arg::Write(&w),
            Arg::Write(&u),
            Arg::Params(bytemuck::bytes_of(&params)),
        ],
        grid: [layout.batch * chunks * layout.v_heads, 1],
        threads: 128,
        // two tiles, and two factors of each token
        shared: to_u32(2 * CHUNK * (2 * width + 4))?,
    })?;
    Ok(WyRepr { w, u })
}
