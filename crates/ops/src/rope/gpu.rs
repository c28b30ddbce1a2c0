//! A token's angles are computed once for several heads, as integers of parts of a turn.

use super::{Pairs, Rope, Rotation};
use crate::common::gpu::form::{Form, QUADS, SINGLES};
use crate::common::gpu::to_u32s;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Tensor};

const TEXT: &str = include_str!("kernel.wgsl");

/// Text after [`QUADS`], with sines and cosines of four angles.
pub(crate) const QUAD_ANGLES: &str =
    concat!("alias Bits = vec4<u32>;\nalias Whole = vec4<i32>;\n", include_str!("angle.wgsl"));
/// The same after [`SINGLES`].
pub(crate) const SINGLE_ANGLES: &str = concat!("alias Bits = u32;\nalias Whole = i32;\n", include_str!("angle.wgsl"));

static KERNELS: [Kernel; 2] = [
    crate::common::gpu::kernel("rope", &[QUADS, QUAD_ANGLES, TEXT]),
    crate::common::gpu::kernel("rope of single pairs", &[SINGLES, SINGLE_ANGLES, TEXT]),
];

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;
/// Heads that share the computation of an angle.
const HEADS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    tokens: u32,
    heads: u32,
    width: u32,
    pairs: u32,
    each: u32,
    back: u32,
    step: u32,
    apart: u32,
    magnitude: f32,
}

/// Turns a position of each pair, in units of 2⁻³², then what is left of each in units of 2⁻⁶⁴. Whole turns drop out.
pub(crate) fn frequencies(turn: Rope) -> Vec<u32> {
    let pairs = turn.dims / 2;
    let turns = |i: usize| turn.frequency(i) / std::f64::consts::TAU;
    let units: Vec<f64> = (0..pairs).map(|i| turns(i).fract() * f64::from(2.0f32.powi(32))).collect();
    let upper = units.iter().map(|&units| units as u32);
    let lower = units.iter().map(|units| (units.fract() * f64::from(2.0f32.powi(32))) as u32);
    upper.chain(lower).collect()
}

/// The form of kernels that rotate heads of `width` elements.
pub(crate) fn form(width: usize, dtype: DType, turn: Rope) -> Form {
    match Form::of(width, dtype) {
        Form::Quads(dtype) if (turn.dims / 2).is_multiple_of(4) && turn.pairs == Pairs::Halves => Form::Quads(dtype),
        _ => Form::Singles,
    }
}

pub(super) fn rotate(gpu: &Gpu, x: &Tensor, positions: &Tensor, turn: Rope, way: Rotation) -> Result<Tensor> {
    let (heads, width, tokens) = (x.shape()[2], x.shape()[3], positions.elements());
    let pairs = turn.dims / 2;
    let form = form(width, x.dtype(), turn);
    let table = gpu.table(&frequencies(turn))?;
    let (from, y) = (gpu.convert(x, form.dtype())?, gpu.empty(x.shape(), form.dtype())?);
    let row = heads * width * form.dtype().size();
    for part in gpu.segments(tokens, row) {
        let (width, pairs) = (width / form.unit(), pairs / form.unit());
        let [step, apart] = turn.pairs.strides(pairs);
        let numbers = [part.len(), heads, width, pairs, HEADS, usize::from(way == Rotation::Back), step, apart];
        let [tokens, heads, width, pairs, each, back, step, apart] = to_u32s(numbers)?;
        let invocations = numbers[0] * numbers[1].div_ceil(HEADS) * (numbers[2] - numbers[3]);
        gpu.launch(&Launch {
            kernel: form.choose(&KERNELS),
            entry: "rotate",
            constants: &[],
            stored: &form.stored(),
            binds: &[
                Bind::Part(&from, part.start * row..part.end * row),
                Bind::Part(positions, part.start * 4..part.end * 4),
                Bind::All(&table),
                Bind::Part(&y, part.start * row..part.end * row),
            ],
            params: bytemuck::bytes_of(&Params {
                tokens,
                heads,
                width,
                pairs,
                each,
                back,
                step,
                apart,
                magnitude: turn.magnitude(),
            }),
            groups: Groups::Line(invocations.div_ceil(WORKGROUP)),
        })?;
    }
    gpu.convert(&y, x.dtype())
}
