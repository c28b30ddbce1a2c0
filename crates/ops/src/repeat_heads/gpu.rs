//! Rows are copied forward; backward an invocation sums the repeats of one unit.

use crate::common::gpu::copy::{CopyPlace, RowCopy};
use crate::common::gpu::form::{Form, QUADS, SINGLES};
use crate::common::gpu::to_u32;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Shape, Tensor};

const TEXT: &str = include_str!("kernel.wgsl");

static KERNELS: [Kernel; 2] = [
    crate::common::gpu::kernel("repeat_heads", &[QUADS, TEXT]),
    crate::common::gpu::kernel("repeat_heads, scalar", &[SINGLES, TEXT]),
];

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
    width: u32,
    times: u32,
}

pub(super) fn forward(gpu: &Gpu, x: &Tensor, times: usize, shape: Shape) -> Result<Tensor> {
    let width = shape.last();
    // rows of whole words can be repeated as they are
    let dtype = if (width * x.dtype().size()).is_multiple_of(4) { x.dtype() } else { DType::F32 };
    let (from, y) = (gpu.convert(x, dtype)?, gpu.empty(shape, dtype)?);
    let place = |tensor| CopyPlace { tensor, first: 0, stride: width };
    let rows = shape.elements() / width;
    RowCopy { to: place(&y), from: Some(place(&from)), rows, width, repeat: times }.copy(gpu)?;
    gpu.convert(&y, x.dtype())
}

pub(super) fn backward(gpu: &Gpu, dy: &Tensor, times: usize, shape: Shape) -> Result<Tensor> {
    let form = Form::of(shape.last(), dy.dtype());
    let from = gpu.convert(dy, form.dtype())?;
    let dx = gpu.empty(shape, form.dtype())?;
    let (width, row) = (shape.last() / form.unit(), shape.last() * form.dtype().size());
    for rows in gpu.segments(shape.elements() / shape.last(), row * times) {
        let params = Params { count: to_u32(rows.len() * width)?, width: to_u32(width)?, times: to_u32(times)? };
        gpu.launch(&Launch {
            kernel: form.choose(&KERNELS),
            entry: "backward",
            constants: &[],
            stored: &form.stored(),
            binds: &[
                Bind::Part(&from, rows.start * row * times..rows.end * row * times),
                Bind::Part(&dx, rows.start * row..rows.end * row),
            ],
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line((rows.len() * width).div_ceil(WORKGROUP)),
        })?;
    }
    gpu.convert(&dx, dy.dtype())
}
