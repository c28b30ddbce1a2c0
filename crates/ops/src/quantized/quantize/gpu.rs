//! An invocation takes four groups: their scales make a word.

use crate::common::gpu::to_u32;
use crate::quantized::gpu::ENCODE;
use crate::quantized::{Packed, Packing};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Tensor};

static KERNEL: Kernel = crate::common::gpu::kernel("quantize", &[ENCODE, include_str!("kernel.wgsl")]);

/// Invocations of a workgroup, and groups of each.
const WG: usize = 64;
const EACH: usize = 4;

pub(super) fn forward(gpu: &Gpu, w: &Tensor, packing: Packing) -> Result<Packed> {
    let (bits, group, inner) = (packing.bits(), packing.group(), w.shape().last());
    let (axis, groups) = (w.shape().rank() - 1, w.elements() / group);
    let codes = gpu.empty(w.shape().with(axis, inner * bits / 32), DType::U32)?;
    let scales = gpu.empty(w.shape().with(axis, inner / group), DType::U8)?;
    let bytes = [group * w.dtype().size(), group * bits / 8, 1];
    for part in gpu.segments(groups.div_ceil(EACH), EACH * bytes[0]) {
        let own = part.start * EACH..(part.end * EACH).min(groups);
        let bind = |(tensor, size): (_, usize)| Bind::Part(tensor, own.start * size..own.end * size);
        gpu.launch(&Launch {
            kernel: &KERNEL,
            entry: "main",
            constants: &[
                ("BITS", bits as u32),
                ("GROUP", group as u32),
                ("POWERS", u32::from(packing != Packing::Nvfp4)),
            ],
            stored: &[("X", w.dtype())],
            binds: &[(w, bytes[0]), (&codes, bytes[1]), (&scales, bytes[2])].map(bind),
            params: bytemuck::bytes_of(&to_u32(own.len())?),
            groups: Groups::Line(part.len().div_ceil(WG)),
        })?;
    }
    Ok(Packed { w: codes, scales, biases: None, packing })
}
