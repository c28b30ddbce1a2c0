//! Reductions of rows. Long rows are cut into parts, so that few rows fill a GPU, too; the cut depends on shapes alone.

use super::From;
use crate::common::gpu::ALIGNMENT;
use crate::common::gpu::form::{Form, QUADS, SINGLES};
use crate::common::gpu::rows::{ROWS, Sharing};
use crate::common::gpu::{to_u32, to_u32s};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Shape, Tensor};
use std::ops::Range;

const SUMS_TEXT: &str = include_str!("sums.wgsl");
const SPREAD_TEXT: &str = include_str!("spread.wgsl");

static SUMS: [Kernel; 2] = [
    crate::common::gpu::kernel("sums", &[QUADS, ROWS, SUMS_TEXT]).reducing(),
    crate::common::gpu::kernel("sums, scalar", &[SINGLES, ROWS, SUMS_TEXT]).reducing(),
];
static SPREAD: [Kernel; 2] = [
    crate::common::gpu::kernel("spread", &[QUADS, SPREAD_TEXT]),
    crate::common::gpu::kernel("spread, scalar", &[SINGLES, SPREAD_TEXT]),
];
static ARGMAX: Kernel = crate::common::gpu::kernel("argmax", &[include_str!("argmax.wgsl")]);
static MAX: Kernel = crate::common::gpu::kernel("max", &[include_str!("max.wgsl")]);
static CUMSUM: Kernel = crate::common::gpu::kernel("cumsum", &[include_str!("cumsum.wgsl")]);

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;
/// Parts of all rows together, at least where the rows are long enough: enough to fill a large GPU.
const PARTS: usize = 1024;
/// Units of a part, at least.
const SMALLEST: usize = 2048;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    width: u32,
    parts: u32,
    each: u32,
    first: u32,
    factor: f32,
}

/// The units of a part of each row.
fn part_of(rows: usize, units: usize) -> usize {
    let parts = (units / SMALLEST).min(PARTS / rows.min(PARTS)).max(1);
    // a single row is cut between parts where a binding cannot hold it
    if parts == 1 { units } else { units.div_ceil(parts).next_multiple_of(ALIGNMENT) }
}

/// The part that one launch sums: units of several rows, or of one.
struct Stretch {
    rows: usize,
    units: Range<usize>,
    /// Sums before its own.
    first: usize,
}

/// All rows, in stretches that fit a binding.
fn stretches(gpu: &Gpu, rows: usize, units: usize, each: usize, bytes: usize) -> Vec<Stretch> {
    let parts = units.div_ceil(each);
    if rows > 1 {
        let runs = gpu.segments(rows, units * bytes);
        let stretch = |run: Range<usize>| Stretch {
            rows: run.len(),
            units: run.start * units..run.end * units,
            first: run.start * parts,
        };
        return runs.map(stretch).collect();
    }
    let most = (gpu.limits().binding / (each * bytes)).max(1);
    let stretch = |first: usize| Stretch { rows: 1, units: first * each..((first + most) * each).min(units), first };
    (0..parts).step_by(most).map(stretch).collect()
}

/// `factor` times the sum of each row of `width` elements.
pub(super) fn sums(gpu: &Gpu, x: &Tensor, width: usize, factor: f32, shape: Shape) -> Result<Tensor> {
    let rows = x.elements() / width;
    let form = Form::of(width, x.dtype());
    let from = gpu.convert(x, form.dtype())?;
    let each = part_of(rows, width / form.unit());
    let parts = (width / form.unit()).div_ceil(each);
    let factor_here = if parts == 1 { factor } else { 1.0 };
    let y = gpu.empty([rows * parts], DType::F32)?;
    let sharing = Sharing::of(each);
    let unit = form.unit() * form.dtype().size();
    for stretch in stretches(gpu, rows, width / form.unit(), each, unit) {
        let Stretch { rows, units, first } = stretch;
        let width = units.len() / rows;
        let count = rows * width.div_ceil(each);
        // where a binding may start
        let aligned = first * 4 / ALIGNMENT * ALIGNMENT;
        let numbers = [rows, width, width.div_ceil(each), each, first - aligned / 4];
        let [rows, width, parts, each, skipped] = to_u32s(numbers)?;
        gpu.launch(&Launch {
            kernel: form.choose(&SUMS),
            entry: "main",
            constants: &sharing.constants(),
            stored: &form.stored(),
            binds: &[
                Bind::Part(&from, units.start * unit..units.end * unit),
                Bind::Part(&y, aligned..(first + count) * 4),
            ],
            params: bytemuck::bytes_of(&Params { rows, width, parts, each, first: skipped, factor: factor_here }),
            groups: Groups::Line(count.div_ceil(sharing.at_once())),
        })?;
    }
    if parts > 1 {
        return gpu.convert(&sums(gpu, &y, parts, factor, shape)?, x.dtype());
    }
    gpu.convert(&y.reshape(shape)?, x.dtype())
}

/// Each row of `width` elements of the result is `factor` times the row's element in `dy`.
pub(super) fn spread(gpu: &Gpu, dy: &Tensor, width: usize, factor: f32, shape: Shape) -> Result<Tensor> {
    let single = dy.elements() == 1;
    // a single row may be cut anywhere and end within a vec4: what is past its end is nobody's
    let form = Form::of(if single { 4 } else { width }, dy.dtype());
    let (from, y) = (gpu.widen(dy)?, gpu.empty(shape, form.dtype())?);
    let end = shape.elements() * form.dtype().size();
    let (rows, width) = if single { (shape.elements().div_ceil(4), 4) } else { (dy.elements(), width) };
    let row = width * form.dtype().size();
    for run in gpu.segments(rows, row) {
        let count = run.len() * width / form.unit();
        let units = if single { u32::MAX } else { to_u32(width / form.unit())? };
        let numbers = if single { 0..4 } else { run.start * 4..run.end * 4 };
        let params = Spread { count: to_u32(count)?, width: units, factor };
        gpu.launch(&Launch {
            kernel: form.choose(&SPREAD),
            entry: "main",
            constants: &[],
            stored: &form.stored(),
            binds: &[Bind::Part(&from, numbers), Bind::Part(&y, run.start * row..(run.end * row).min(end))],
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(count.div_ceil(WORKGROUP)),
        })?;
    }
    gpu.convert(&y, dy.dtype())
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Spread {
    count: u32,
    width: u32,
    factor: f32,
}

/// The index of the largest element of each row of `width`: the first of equal ones. A NaN counts as smaller than any.
/// `x` is f32.
pub(super) fn argmax(gpu: &Gpu, x: &Tensor, width: usize, shape: Shape) -> Result<Tensor> {
    let rows = x.elements() / width;
    let each = part_of(rows, width);
    let parts = width.div_ceil(each);
    let found = || gpu.empty([rows * parts], DType::U32);
    let (keys, places) = (found()?, found()?);
    let [count, width, parts, each] = to_u32s([rows, width, parts, each])?;
    let launch = |entry, groups, third: &Tensor| {
        gpu.launch(&Launch {
            kernel: &ARGMAX,
            entry,
            constants: &[("WG", WORKGROUP as u32)],
            stored: &[],
            binds: &[Bind::All(&keys), Bind::All(&places), Bind::All(third)],
            params: bytemuck::bytes_of(&[count, width, parts, each]),
            groups: Groups::Line(groups),
        })
    };
    launch("find", rows * parts as usize, x)?;
    if parts == 1 {
        return places.reshape(shape);
    }
    let at = gpu.empty(shape, DType::U32)?;
    launch("join", rows, &at)?;
    Ok(at)
}

fn launch_max(gpu: &Gpu, entry: &'static str, width: usize, [at, x, y]: [&Tensor; 3]) -> Result<()> {
    gpu.launch(&Launch {
        kernel: &MAX,
        entry,
        constants: &[],
        stored: &[],
        binds: &[Bind::All(at), Bind::All(x), Bind::All(y)],
        params: bytemuck::bytes_of(&to_u32s([y.elements(), width])?),
        groups: Groups::Line(y.elements().div_ceil(256)),
    })
}

/// The largest element of each row, and its index.
pub(super) fn max(gpu: &Gpu, x: &Tensor, width: usize, shape: Shape) -> Result<(Tensor, Tensor)> {
    let from = gpu.widen(x)?;
    let (at, y) = (argmax(gpu, &from, width, shape)?, gpu.empty(shape, DType::F32)?);
    launch_max(gpu, "forward", width, [&at, &from, &y])?;
    Ok((gpu.convert(&y, x.dtype())?, at))
}

/// The gradient of [`max`].
pub(super) fn max_backward(gpu: &Gpu, dy: &Tensor, at: &Tensor, width: usize, shape: Shape) -> Result<Tensor> {
    let (from, dx) = (gpu.widen(dy)?, gpu.empty(shape, DType::F32)?);
    launch_max(gpu, "backward", width, [at, &from, &dx])?;
    gpu.convert(&dx, dy.dtype())
}

/// Running sums of the rows, from one end: a workgroup for each row.
pub(super) fn running(gpu: &Gpu, x: &Tensor, from: From) -> Result<Tensor> {
    let (rows, width) = (x.elements() / x.shape().last(), x.shape().last());
    let (wide, y) = (gpu.widen(x)?, gpu.empty(x.shape(), DType::F32)?);
    let group = width.div_ceil(4).next_power_of_two().clamp(32, 256);
    for run in gpu.segments(rows, 4 * width) {
        let bytes = 4 * width * run.start..4 * width * run.end;
        gpu.launch(&Launch {
            kernel: &CUMSUM,
            entry: "main",
            constants: &[("WG", group as u32), ("BACK", u32::from(from == From::End))],
            stored: &[],
            binds: &[Bind::Part(&wide, bytes.clone()), Bind::Part(&y, bytes)],
            params: bytemuck::bytes_of(&to_u32s([run.len(), width])?),
            groups: Groups::Line(run.len()),
        })?;
    }
    gpu.convert(&y, x.dtype())
}
