//! Rows are copied by their ids. Backward the ids are sorted with their places, and workgroups sum the rows of each.

use super::{CONTRACT, Grad};
use crate::common::gpu::form::{Form, QUADS, SINGLES};
use crate::common::gpu::sort::{Sorted, sort};
use crate::common::gpu::to_u32s;
use crate::common::ids::known_below;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Dims, Result, Tensor};

const GATHER: &str = include_str!("kernel.wgsl");
const GRADIENT: &str = include_str!("gradient.wgsl");

static BY_QUAD: Kernel = crate::common::gpu::kernel("embedding by quads", &["alias Unit = vec4<u32>;\n", GATHER]);
static BY_WORD: Kernel = crate::common::gpu::kernel("embedding by u32", &["alias Unit = u32;\n", GATHER]);
static GRADIENTS: [Kernel; 2] = [
    crate::common::gpu::kernel("gradient of embedding", &[QUADS, GRADIENT]),
    crate::common::gpu::kernel("gradient of embedding, scalar", &[SINGLES, GRADIENT]),
];

/// Invocations of a workgroup, forward and backward.
const WORKGROUP: usize = 256;
const COLUMNS: usize = 64;
/// Sorted places whose rows are summed first where they all have the same id.
const BLOCK: usize = 128;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
    width: u32,
    first: u32,
    rows: u32,
    last: u32,
}

/// Ids that the CPU knows are checked; a row whose id a GPU made is NaN where it is not in the table.
pub(super) fn forward(gpu: &Gpu, table: &Tensor, ids: &Tensor, dims: &Dims) -> Result<Tensor> {
    let (vocabulary, width, count) = (dims['V'], dims['D'], ids.elements());
    known_below(CONTRACT.op, "ids", ids, ('V', vocabulary))?;
    let dtype = if (width * table.dtype().size()).is_multiple_of(4) { table.dtype() } else { DType::F32 };
    let (from, y) = (gpu.convert(table, dtype)?, gpu.empty(dims.shape("R.. D")?, dtype)?);
    let row = width * dtype.size();
    let (kernel, unit) = if row.is_multiple_of(16) { (&BY_QUAD, 16) } else { (&BY_WORD, 4) };
    for stretch in gpu.segments(vocabulary, row) {
        for part in gpu.segments(count, row) {
            let units = part.len() * row / unit;
            let numbers = [units, row / unit, stretch.start, stretch.len(), vocabulary];
            let [count, width, first, rows, last] = to_u32s(numbers)?;
            gpu.launch(&Launch {
                kernel,
                entry: "forward",
                constants: &[],
                stored: &[],
                binds: &[
                    Bind::Part(ids, part.start * 4..part.end * 4),
                    Bind::Part(&from, stretch.start * row..stretch.end * row),
                    Bind::Part(&y, part.start * row..part.end * row),
                ],
                params: bytemuck::bytes_of(&Params { count, width, first, rows, last }),
                groups: Groups::Line(units.div_ceil(WORKGROUP)),
            })?;
        }
    }
    gpu.convert(&y, table.dtype())
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor) -> Result<Tensor> {
    let (vocabulary, width) = (saved.shape[0], saved.shape[1]);
    let Sorted { pairs, starts } = sort(gpu, &saved.ids, vocabulary)?;
    let form = Form::of(width, saved.dtype);
    let from = gpu.convert(dy, form.dtype())?;
    let y = gpu.empty(saved.shape, form.dtype())?;
    let units = width / form.unit();
    let launch = |entry, binds: &[Bind<'_>], rows: usize, first: usize| {
        let params = to_u32s([rows, units, first, vocabulary])?;
        gpu.launch(&Launch {
            kernel: form.choose(&GRADIENTS),
            entry,
            constants: &[("BLOCK", BLOCK as u32)],
            stored: &form.stored(),
            binds,
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(rows * units.div_ceil(COLUMNS)),
        })
    };
    let blocks = saved.ids.elements() / BLOCK;
    // a single unused row where there is no whole block
    let parts = gpu.empty([blocks.max(1), width], DType::F32)?;
    if blocks > 0 {
        launch("blocks", &[&pairs, &from, &parts].map(Bind::All), blocks, 0)?;
    }
    let row = width * form.dtype().size();
    for stretch in gpu.segments(vocabulary, row) {
        let [pairs, from, parts, starts] = [&pairs, &from, &parts, &starts].map(Bind::All);
        let to = Bind::Part(&y, stretch.start * row..stretch.end * row);
        launch("rows", &[pairs, from, parts, starts, to], stretch.len(), stretch.start)?;
    }
    gpu.convert(&y, saved.dtype)
}
