//! An invocation takes a group: its words are whole, whatever the bits.

use crate::common::gpu::to_u32;
use crate::quantized::gpu::ENCODE;
use crate::quantized::{Packed, Packing};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Tensor};

static KERNEL: Kernel = crate::common::gpu::kernel("quantize_affine", &[ENCODE, include_str!("kernel.wgsl")]);

/// Invocations of a workgroup.
const WG: usize = 64;

pub(super) fn forward(gpu: &Gpu, w: &Tensor, packing: Packing) -> Result<Packed> {
    let (bits, group, inner) = (packing.bits(), packing.group(), w.shape().last());
    let (axis, groups) = (w.shape().rank() - 1, w.shape().last() / group);
    let codes = gpu.empty(w.shape().with(axis, inner * bits / 32), DType::U32)?;
    let empty = || gpu.empty(w.shape().with(axis, groups), DType::F32);
    let (scales, biases) = (empty()?, empty()?);
    let bytes = [group * w.dtype().size(), group * bits / 8, 4, 4];
    for part in gpu.segments(w.elements() / group, bytes[0]) {
        let bind = |(tensor, size): (_, usize)| Bind::Part(tensor, part.start * size..part.end * size);
        gpu.launch(&Launch {
            kernel: &KERNEL,
            entry: "main",
            constants: &[("BITS", bits as u32), ("GROUP", group as u32)],
            stored: &[("X", w.dtype())],
            binds: &[(w, bytes[0]), (&codes, bytes[1]), (&scales, bytes[2]), (&biases, bytes[3])].map(bind),
            params: bytemuck::bytes_of(&to_u32(part.len())?),
            groups: Groups::Line(part.len().div_ceil(WG)),
        })?;
    }
    let (scales, biases) = (gpu.convert(&scales, w.dtype())?, gpu.convert(&biases, w.dtype())?);
    Ok(Packed { w: codes, scales, biases: Some(biases), packing })
}
