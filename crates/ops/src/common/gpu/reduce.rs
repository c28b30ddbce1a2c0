//! Reductions of rows. Long rows are cut into parts, so that few rows fill a GPU, too; the cut depends on shapes alone.

use super::form::{Form, QUADS, SINGLES};
use super::rows::{ROWS, Sharing};
use crate::common::gpu::ALIGNMENT;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Shape, Tensor};
use std::ops::Range;

const SUMS_TEXT: &str = include_str!("sums.wgsl");
const SPREAD_TEXT: &str = include_str!("spread.wgsl");

static SUMS: [Kernel; 2] = [
    crate::common::gpu::kernel("sums", &[QUADS, ROWS, SUMS_TEXT]).reducing(),
    crate::common::gpu::kernel("sums of single numbers", &[SINGLES, ROWS, SUMS_TEXT]).reducing(),
];
static SPREAD: [Kernel; 2] = [
    crate::common::gpu::kernel("spread", &[QUADS, SPREAD_TEXT]),
    crate::common::gpu::kernel("spread of single numbers", &[SINGLES, SPREAD_TEXT]),
];
static LARGEST: Kernel = crate::common::gpu::kernel("largest", &[include_str!("largest.wgsl")]);

/// Invocations of a workgroup.
const GROUP: usize = 256;
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

/// What one launch sums: of so many rows, or of one, these units.
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

/// `factor` times the sum of each row of `width` numbers.
pub(crate) fn sums(gpu: &Gpu, x: &Tensor, width: usize, factor: f32, shape: Shape) -> Result<Tensor> {
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
        let [rows, width, parts, each, skipped] = numbers.map(|n| n as u32);
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

/// Each row of `width` numbers of the result is `factor` times the row's number in `dy`.
pub(crate) fn spread(gpu: &Gpu, dy: &Tensor, width: usize, factor: f32, shape: Shape) -> Result<Tensor> {
    let single = dy.elements() == 1;
    // a single row may be cut anywhere and end within a quad: what is past its end is nobody's
    let form = Form::of(if single { 4 } else { width }, dy.dtype());
    let (from, y) = (gpu.widen(dy)?, gpu.empty(shape, form.dtype())?);
    let end = shape.elements() * form.dtype().size();
    let (rows, width) = if single { (shape.elements().div_ceil(4), 4) } else { (dy.elements(), width) };
    let row = width * form.dtype().size();
    for run in gpu.segments(rows, row) {
        let count = run.len() * width / form.unit();
        let units = if single { u32::MAX } else { (width / form.unit()) as u32 };
        let numbers = if single { 0..4 } else { run.start * 4..run.end * 4 };
        let params = Spread { count: count as u32, width: units, factor };
        gpu.launch(&Launch {
            kernel: form.choose(&SPREAD),
            entry: "main",
            constants: &[],
            stored: &form.stored(),
            binds: &[Bind::Part(&from, numbers), Bind::Part(&y, run.start * row..(run.end * row).min(end))],
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(count.div_ceil(GROUP)),
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

/// Where the largest number of each row of `width` is: the first of equal ones. A NaN counts as smaller than any
/// number. `x` is f32.
pub(crate) fn largest(gpu: &Gpu, x: &Tensor, width: usize, shape: Shape) -> Result<Tensor> {
    let rows = x.elements() / width;
    let each = part_of(rows, width);
    let parts = width.div_ceil(each);
    let found = || gpu.empty([rows * parts], DType::U32);
    let (keys, places) = (found()?, found()?);
    let [count, width, parts, each] = [rows, width, parts, each].map(|n| n as u32);
    let launch = |entry, groups, third: &Tensor| {
        gpu.launch(&Launch {
            kernel: &LARGEST,
            entry,
            constants: &[("WG", GROUP as u32)],
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
