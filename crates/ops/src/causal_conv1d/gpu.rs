//! Runs of rows slide through registers, a unit of channels an invocation; the gradient to the taps in two stages.

use super::{Activation, Saved};
use crate::common::gpu::MATH;
use crate::common::gpu::form::{Form, QUADS, QUADS_MATH, SINGLES, SINGLES_MATH};
use crate::common::gpu::totals::{PARTS, totals};
use crate::common::gpu::{to_u32, to_u32s};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Shape, Tensor};

const RUNS: &str = include_str!("runs.wgsl");
const WINDOW: &str = include_str!("window.wgsl");
const MANY: &str = include_str!("many_taps.wgsl");
const QUAD_TAPS: &str = include_str!("vec4.wgsl");
const SINGLE_TAPS: &str = include_str!("scalar.wgsl");

static FEW_TAPS: [Kernel; 2] = [
    crate::common::gpu::kernel("causal_conv1d", &[MATH, QUADS, QUADS_MATH, QUAD_TAPS, RUNS, WINDOW]),
    crate::common::gpu::kernel(
        "causal_conv1d of single channels",
        &[MATH, SINGLES, SINGLES_MATH, SINGLE_TAPS, RUNS, WINDOW],
    ),
];
static MANY_TAPS: [Kernel; 2] = [
    crate::common::gpu::kernel("causal_conv1d with many taps", &[MATH, QUADS, QUADS_MATH, QUAD_TAPS, RUNS, MANY]),
    crate::common::gpu::kernel(
        "causal_conv1d of single channels with many taps",
        &[MATH, SINGLES, SINGLES_MATH, SINGLE_TAPS, RUNS, MANY],
    ),
];

/// The most taps whose inputs fit in registers.
const FEW: usize = 8;
/// Units of channels of a workgroup.
const WORKGROUP: usize = 64;
/// Invocations that fill a large GPU.
const PLENTY: usize = 1 << 16;

/// Rows of a run, so that there are enough runs: between the two bounds, in whole steps.
fn block(units: usize, smallest: usize, largest: usize) -> usize {
    (units / PLENTY).clamp(smallest, largest).next_multiple_of(4)
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    runs: u32,
    width: u32,
    tokens: u32,
    block: u32,
    each: u32,
    stride: u32,
}

/// A launch of a plan.
struct Entry<'a> {
    name: &'static str,
    /// The units of the grid: runs, rows of states, or parts of the sums.
    rows: usize,
    /// Runs of a part, or sequences.
    each: usize,
    y: &'a Tensor,
    /// The bindings after `x`, the state, the table and `y`.
    more: &'a [Option<&'a Tensor>],
    last: Last,
}

/// Whether the final state has a gradient.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Given,
    Absent,
}

/// The arguments as the kernels read them, and how the rows are cut into runs.
struct ConvLaunch<'a> {
    gpu: &'a Gpu,
    saved: &'a Saved,
    kernels: &'static [Kernel; 2],
    form: Form,
    taps: usize,
    channels: usize,
    x: Tensor,
    w: Tensor,
    state: Option<Tensor>,
    table: Option<Tensor>,
    runs: usize,
    block: usize,
    activation: Activation,
    /// Whether the gradients to `x` and `w` are written.
    need: [bool; 2],
}

impl<'a> ConvLaunch<'a> {
    fn new(gpu: &'a Gpu, saved: &'a Saved, block: usize) -> Result<Self> {
        let (channels, taps) = (saved.w.shape()[0], saved.w.shape()[1]);
        let (kernels, dtype) = if taps <= FEW { (&FEW_TAPS, saved.x.dtype()) } else { (&MANY_TAPS, DType::F32) };
        let form = Form::of(channels, dtype);
        let convert = |x: &Tensor| gpu.convert(x, form.dtype());
        let runs = saved.sequences.iter().map(|rows| rows.len().div_ceil(block)).sum();
        let (x, w) = (convert(&saved.x)?, convert(&saved.w)?);
        let state = saved.state.as_ref().map(convert).transpose()?;
        // rows of equal length need no table
        let equal = saved.sequences.len() == saved.x.shape()[0];
        let table = if equal { None } else { Some(table(gpu, saved, block)?) };
        let activation = saved.activation;
        Ok(ConvLaunch {
            gpu,
            saved,
            kernels,
            form,
            taps,
            channels,
            x,
            w,
            state,
            table,
            runs,
            block,
            activation,
            need: [true; 2],
        })
    }

    fn like(&self, shape: Shape) -> Result<Tensor> {
        self.gpu.empty(shape, self.form.dtype())
    }

    fn launch<'b>(&'b self, entry: &Entry<'b>) -> Result<()> {
        let width = self.channels / self.form.unit();
        let params = Params {
            runs: to_u32(self.runs)?,
            width: to_u32(width)?,
            tokens: to_u32(self.saved.x.shape()[1])?,
            block: to_u32(self.block)?,
            each: to_u32(entry.each)?,
            stride: to_u32(self.stride())?,
        };
        // what is left out is never read; anything stands in for it
        let or_any = |x: Option<&'b Tensor>| x.map_or(Bind::Part(&self.x, 0..4), Bind::All);
        let mut binds =
            vec![Bind::All(&self.x), or_any(self.state.as_ref()), or_any(self.table.as_ref()), Bind::All(entry.y)];
        binds.extend(entry.more.iter().map(|&x| or_any(x)));
        let flag = |on: bool| u32::from(on);
        self.gpu.launch(&Launch {
            kernel: self.form.choose(self.kernels),
            entry: entry.name,
            constants: &[
                ("TAPS", self.taps as u32),
                ("STATE", flag(self.state.is_some())),
                ("PACKED", flag(self.table.is_some())),
                ("LAST", flag(entry.last == Last::Given)),
                ("SILU", flag(self.activation == Activation::Silu)),
                ("DX", flag(self.need[0])),
                ("DW", flag(self.need[1])),
            ],
            stored: &self.form.stored(),
            binds: &binds,
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(entry.rows * width.div_ceil(WORKGROUP)),
        })
    }

    fn stride(&self) -> usize {
        (self.channels * self.taps).next_multiple_of(4)
    }
}

/// For each run, then for each sequence: the first row, the sequence's first and the one past its last, its number.
fn table(gpu: &Gpu, saved: &Saved, block: usize) -> Result<Tensor> {
    let mut table = Vec::new();
    let mut runs = |block: usize| -> Result<()> {
        for (number, rows) in saved.sequences.iter().enumerate() {
            for first in rows.clone().step_by(block) {
                table.extend(to_u32s([first, rows.start, rows.end, number])?);
            }
        }
        Ok(())
    };
    runs(block)?;
    runs(usize::MAX)?;
    gpu.table(&table)
}

pub(super) fn forward(gpu: &Gpu, saved: &Saved) -> Result<(Tensor, Option<Tensor>)> {
    let plan = ConvLaunch::new(gpu, saved, block(saved.x.elements() / 4, 4, 32))?;
    let y = plan.like(saved.x.shape())?;
    let w = [Some(&plan.w)];
    let entry = Entry { name: "forward", rows: plan.runs, each: 1, y: &y, more: &w, last: Last::Absent };
    plan.launch(&entry)?;
    let y = gpu.convert(&y, saved.x.dtype())?;
    if plan.taps == 1 {
        return Ok((y, None));
    }
    let (sequences, before) = (saved.sequences.len(), plan.taps - 1);
    let state = plan.like([sequences, before, plan.channels].into())?;
    plan.launch(&Entry { name: "last", rows: sequences * before, each: sequences, y: &state, more: &[], ..entry })?;
    Ok((y, Some(gpu.convert(&state, saved.x.dtype())?)))
}

pub(super) fn backward(
    gpu: &Gpu,
    saved: &Saved,
    [dy, dlast]: [Option<&Tensor>; 2],
    need: [bool; 3],
) -> Result<[Option<Tensor>; 3]> {
    let mut plan = ConvLaunch::new(gpu, saved, block(saved.x.elements() / 8, 8, 64))?;
    let convert = |x: &Tensor| gpu.convert(x, plan.form.dtype());
    let mut dy = match dy {
        Some(dy) => convert(dy)?,
        None => gpu.zeros(saved.x.shape(), plan.form.dtype())?,
    };
    let dlast = dlast.map(convert).transpose()?;
    let last = if dlast.is_some() { Last::Given } else { Last::Absent };
    if plan.taps > FEW && plan.activation != Activation::None {
        // computed once for all that each row's taps see
        let dz = plan.like(saved.x.shape())?;
        let more = [Some(&plan.w), Some(&dy)];
        plan.launch(&Entry { name: "sums_gradient", rows: plan.runs, each: 1, y: &dz, more: &more, last })?;
        (dy, plan.activation) = (dz, Activation::None);
    }
    plan.need = [need[0], need[1]];
    let each = plan.runs.div_ceil(PARTS);
    let parts = plan.runs.div_ceil(each);
    // a gradient that is not needed is bound, but not written
    let none = || gpu.empty([4], DType::F32);
    let sums = if need[1] { gpu.empty([parts, plan.stride()], DType::F32)? } else { none()? };
    let dx = if need[0] { plan.like(saved.x.shape())? } else { none()? };
    let more = [Some(&plan.w), Some(&dy), dlast.as_ref(), Some(&sums)];
    if need[0] || need[1] {
        plan.launch(&Entry { name: "backward", rows: parts, each, y: &dx, more: &more, last })?;
    }
    let weights = || gpu.convert(&totals(gpu, &sums, saved.w.shape())?, saved.dw_dtype);
    let dw = need[1].then(weights).transpose()?;
    let dx = need[0].then(|| gpu.convert(&dx, saved.x.dtype())).transpose()?;
    let Some(state) = saved.state.as_ref().filter(|_| need[2]) else { return Ok([dx, dw, None]) };
    let dstate = plan.like(state.shape())?;
    let sequences = saved.sequences.len();
    let rows = sequences * (plan.taps - 1);
    plan.launch(&Entry { name: "before", rows, each: sequences, y: &dstate, more: &more[..3], last })?;
    Ok([dx, dw, Some(gpu.convert(&dstate, state.dtype())?)])
}
