//! One launch: the invocations of a workgroup share rows, as those of `rms_norm`.

use super::AddRmsNorm;
use crate::common::gpu::form::{Form, QUADS, SINGLES};
use crate::common::gpu::rows::{ROWS, Sharing};
use crate::common::gpu::to_u32;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{Result, Tensor};

const TEXT: &str = include_str!("kernel.wgsl");

static KERNELS: [Kernel; 2] = [
    crate::common::gpu::kernel("add_rms_norm", &[QUADS, ROWS, TEXT]).reducing(),
    crate::common::gpu::kernel("add_rms_norm, scalar", &[SINGLES, ROWS, TEXT]).reducing(),
];

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    width: u32,
    share: f32,
    eps: f32,
}

pub(super) fn forward(gpu: &Gpu, [x, r, w]: [&Tensor; 3], eps: f32) -> Result<AddRmsNorm> {
    let width = w.elements();
    let form = Form::of(width, x.dtype());
    let sharing = Sharing::of(width / form.unit());
    let read = |x| gpu.convert(x, form.dtype());
    let (x32, r32, w32) = (read(x)?, read(r)?, read(w)?);
    let (sum, y) = (gpu.empty(x.shape(), form.dtype())?, gpu.empty(x.shape(), form.dtype())?);
    let all_rows = x.elements() / width;
    let row = width * form.dtype().size();
    let [group, lanes, keep] = sharing.constants();
    for rows in gpu.segments(all_rows, row) {
        let part = |x| Bind::Part(x, rows.start * row..rows.end * row);
        let (rows_here, units) = (to_u32(rows.len())?, to_u32(width / form.unit())?);
        let params = Params { rows: rows_here, width: units, share: 1.0 / width as f32, eps };
        gpu.launch(&Launch {
            kernel: form.choose(&KERNELS),
            entry: "forward",
            constants: &[group, lanes, keep],
            stored: &form.stored(),
            binds: &[part(&x32), part(&r32), Bind::All(&w32), part(&sum), part(&y)],
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(rows.len().div_ceil(sharing.at_once())),
        })?;
    }
    Ok(AddRmsNorm { sum: gpu.convert(&sum, x.dtype())?, y: gpu.convert(&y, x.dtype())? })
}
