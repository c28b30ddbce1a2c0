//! Quantized matrices on a GPU: dequantized rows, products with few rows, gradients of scales and biases.

mod plan;

use crate::common::gpu::sort::Sorted;
use crate::common::gpu::{MATH, to_u32, to_u32s};
use crate::quantized::{Packed, PackedLayout, Packing, Quantized};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Tensor};
pub(crate) use plan::{DotPlan, Path, panel, path};
use std::ops::Range;

/// Text that takes codes out of words; its bindings are 1, 3 and 4, and [`constants`] go with it.
pub(crate) const CODES: &str = include_str!("codes.wgsl");

/// Text that divides as the CPU does and pushes codes into words, binding 1; `BITS` goes with it.
pub(crate) const ENCODE: &str =
    concat!("fn roughly(a: f32, b: f32) -> f32 { return a / b; }\n", include_str!("encode.wgsl"));

/// Results whose lines begin at whole vec4s, in any dtype.
const DOT_QUADS: &str = "
@group(0) @binding(2) var<storage, read_write> y: array<Y4>;
fn put(at: u32, x: vec4<f32>, n: u32) { if n < p.outputs { y[at / 4u] = narrow_Y(x); } }
";
/// Results whose lines begin anywhere, in f32.
const DOT_SINGLES: &str = "
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
fn put(at: u32, x: vec4<f32>, n: u32) {
    for (var i = 0u; i < 4u; i++) { if n + i < p.outputs { y[at + i] = x[i]; } }
}
";

static EXPAND: Kernel = crate::common::gpu::kernel("dequantize rows", &[CODES, include_str!("expand.wgsl")]);
static FOLD: Kernel = crate::common::gpu::kernel("gradients of scales", &[CODES, include_str!("fold.wgsl")]);
static DOTS: [Kernel; 2] = [
    crate::common::gpu::kernel("few rows times quantized rows", &[CODES, MATH, DOT_QUADS, include_str!("dots.wgsl")]),
    crate::common::gpu::kernel(
        "few rows times quantized rows, odd",
        &[CODES, MATH, DOT_SINGLES, include_str!("dots.wgsl")],
    ),
];

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;
/// Numbers that an invocation takes at once.
const EIGHT: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
    width: u32,
    first: u32,
    rows: u32,
    last: u32,
}

/// The variant of [`CODES`] for a matrix.
pub(crate) fn constants(q: &Quantized<'_>) -> [(&'static str, u32); 5] {
    let meaning = match q.packing {
        Packing::Affine { .. } => 0,
        Packing::Mxfp4 | Packing::Nvfp4 => 1,
        Packing::Mxfp8 => 2,
    };
    let kind = |x: &Tensor| match x.dtype() {
        DType::F16 => 1,
        DType::BF16 => 2,
        DType::U8 if q.packing == Packing::Nvfp4 => 4,
        DType::U8 => 3,
        _ => 0,
    };
    [
        ("BITS", q.packing.bits() as u32),
        ("GROUP", q.packing.group() as u32),
        ("MEANING", meaning),
        ("SCALES", kind(q.scales)),
        ("BIASES", q.biases.map_or(5, kind)),
    ]
}

/// The words, scales and biases of some groups; where there are no biases the text does not read them.
fn codes<'a>(q: &Quantized<'a>, groups: &Range<usize>) -> [Bind<'a>; 3] {
    let part = |x: &'a Tensor, size: usize| Bind::Part(x, groups.start * size..groups.end * size);
    let biases = q.biases.unwrap_or(q.scales);
    [
        part(q.w, q.packing.group() * q.packing.bits() / 8),
        part(q.scales, q.scales.dtype().size()),
        part(biases, biases.dtype().size()),
    ]
}

/// The bindings of [`CODES`] besides the words: the scales and the biases of the whole matrix.
pub(crate) fn per_group<'a>(q: &Quantized<'a>) -> [Bind<'a>; 2] {
    [Bind::All(q.scales), Bind::All(q.biases.unwrap_or(q.scales))]
}

/// Runs of the rows of a matrix that a binding holds, each of which begins where one may.
pub(crate) fn stretches(gpu: &Gpu, layout: PackedLayout, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    gpu.segments(rows, 4 * layout.words.max(layout.groups))
}

/// Writes the values of all rows to `y`, rounded once.
pub(crate) fn expand(gpu: &Gpu, q: &Quantized<'_>, y: &Tensor) -> Result<()> {
    let (group, size) = (q.packing.group(), y.dtype().size());
    for part in gpu.segments(y.elements() / group, group * size) {
        let [w, scales, biases] = codes(q, &part);
        let count = part.len() * group / EIGHT;
        let to = Bind::Part(y, part.start * group * size..part.end * group * size);
        gpu.launch(&Launch {
            kernel: &EXPAND,
            entry: "all",
            constants: &constants(q),
            stored: &[("Y", y.dtype())],
            binds: &[Bind::Unused, w, to, scales, biases],
            params: bytemuck::bytes_of(&Params { count: to_u32(count)?, width: 0, first: 0, rows: 0, last: 0 }),
            groups: Groups::Line(count.div_ceil(WORKGROUP)),
        })?;
    }
    Ok(())
}

/// Writes the values of the rows that `ids` name to `y`, rounded once; NaN where there is no such row.
pub(crate) fn gather(gpu: &Gpu, q: &Quantized<'_>, layout: PackedLayout, ids: &Tensor, y: &Tensor) -> Result<()> {
    let (all, size) = (q.w.elements() / layout.words, layout.inner * y.dtype().size());
    let width = layout.inner / EIGHT;
    for stretch in stretches(gpu, layout, all) {
        for part in gpu.segments(ids.elements(), size) {
            let [w, scales, biases] = codes(q, &(stretch.start * layout.groups..stretch.end * layout.groups));
            let sizes = [part.len() * width, width, stretch.start, stretch.len(), all];
            let [count, width, first, rows, last] = to_u32s(sizes)?;
            gpu.launch(&Launch {
                kernel: &EXPAND,
                entry: "named",
                constants: &constants(q),
                stored: &[("Y", y.dtype())],
                binds: &[
                    Bind::Part(ids, part.start * 4..part.end * 4),
                    w,
                    Bind::Part(y, part.start * size..part.end * size),
                    scales,
                    biases,
                ],
                params: bytemuck::bytes_of(&Params { count, width, first, rows, last }),
                groups: Groups::Line(sizes[0].div_ceil(WORKGROUP)),
            })?;
        }
    }
    Ok(())
}

/// Writes what the gradient `dw` of all values means for the scales and biases: `Σ dw · code` and `Σ dw` over each
/// group, f32.
pub(crate) fn fold(gpu: &Gpu, q: &Quantized<'_>, dw: &Tensor, to: [&Tensor; 2]) -> Result<()> {
    let (group, size) = (q.packing.group(), dw.dtype().size());
    for part in gpu.segments(dw.elements() / group, group * size) {
        let [w, ..] = codes(q, &part);
        let count = part.len() * group / EIGHT;
        let [dscales, dbiases] = to.map(|to| Bind::Part(to, part.start * 4..part.end * 4));
        let from = Bind::Part(dw, part.start * group * size..part.end * group * size);
        gpu.launch(&Launch {
            kernel: &FOLD,
            entry: "all",
            constants: &constants(q),
            stored: &[("X", dw.dtype())],
            binds: &[from, w, dscales, Bind::Unused, Bind::Unused, dbiases],
            params: bytemuck::bytes_of(&Params { count: to_u32(count)?, width: 0, first: 0, rows: 0, last: 0 }),
            groups: Groups::Line(count.div_ceil(WORKGROUP)),
        })?;
    }
    Ok(())
}

/// As [`fold`] for the rows that sorted ids name: rows of `dw` at the places of one id are summed; zero for the others.
pub(crate) fn fold_named(
    gpu: &Gpu,
    (q, layout): (&Quantized<'_>, PackedLayout),
    ids: &Sorted,
    dw: &Tensor,
    to: [&Tensor; 2],
) -> Result<()> {
    let width = layout.inner / EIGHT;
    for stretch in stretches(gpu, layout, q.w.elements() / layout.words) {
        let groups = stretch.start * layout.groups..stretch.end * layout.groups;
        let [w, ..] = codes(q, &groups);
        let [dscales, dbiases] = to.map(|to| Bind::Part(to, groups.start * 4..groups.end * 4));
        let [from, pairs, starts] = [dw, &ids.pairs, &ids.starts].map(Bind::All);
        let [columns, first, rows] = to_u32s([width, stretch.start, stretch.len()])?;
        gpu.launch(&Launch {
            kernel: &FOLD,
            entry: "named",
            constants: &constants(q),
            stored: &[("X", dw.dtype())],
            binds: &[from, w, dscales, Bind::Unused, Bind::Unused, dbiases, pairs, starts],
            params: bytemuck::bytes_of(&Params { count: 0, width: columns, first, rows, last: 0 }),
            groups: Groups::Line(stretch.len() * width.div_ceil(WORKGROUP)),
        })?;
    }
    Ok(())
}

/// Whether [`dots`] writes results of any dtype: where every line, and every part of it, begins at a whole vec4.
pub(crate) fn writes_any(gpu: &Gpu, layout: PackedLayout, outer: usize) -> bool {
    outer.is_multiple_of(4)
        && stretches(gpu, layout, outer).all(|part| part.start.is_multiple_of(4) && part.len().is_multiple_of(4))
}

/// Writes `x · wᵀ` for a few rows of `x` to `y` `[R, O]`; `y` is f32 unless [`writes_any`].
pub(crate) fn dots(
    gpu: &Gpu,
    (q, layout): (&Quantized<'_>, PackedLayout),
    few: DotPlan,
    x: &Tensor,
    y: &Tensor,
) -> Result<()> {
    let outer = q.w.elements() / layout.words;
    stretches(gpu, layout, outer).try_for_each(|part| dots_of(gpu, (q, layout), few, (part, 1), x, y))
}

/// `silu(x · gᵀ) · (x · uᵀ)` for a few rows of `x` and a matrix `[g; u]` with as many rows in each half; `y` is f32 unless
/// `O` is a multiple of four. A binding must hold the matrix.
pub(crate) fn swiglu_dots(
    gpu: &Gpu,
    (q, layout): (&Quantized<'_>, PackedLayout),
    few: DotPlan,
    x: &Tensor,
    y: &Tensor,
) -> Result<()> {
    let half = q.w.elements() / layout.words / 2;
    dots_of(gpu, (q, layout), few, (0..half, 2), x, y)
}

/// The outputs `part` of `y`, each of a row of the matrix or, of two halves, of a row in either.
fn dots_of(
    gpu: &Gpu,
    (q, layout): (&Quantized<'_>, PackedLayout),
    few: DotPlan,
    (part, halves): (Range<usize>, usize),
    x: &Tensor,
    y: &Tensor,
) -> Result<()> {
    let rows = x.elements() / layout.inner;
    let outer = y.elements() / rows;
    let quads = outer.is_multiple_of(4) && part.start.is_multiple_of(4) && part.len().is_multiple_of(4);
    let [bits, group, meaning, scales, biases] = constants(q);
    let extent = [("FEW", few.room as u32), ("LANES", few.lanes as u32), ("HALVES", halves as u32)];
    let [w, s, b] = codes(q, &(part.start * layout.groups..halves * part.end * layout.groups));
    let sizes = [rows, part.len(), layout.inner / EIGHT, part.start, outer];
    let [count, width, first, rows, last] = to_u32s(sizes)?;
    gpu.launch(&Launch {
        kernel: &DOTS[usize::from(!quads)],
        entry: "dots",
        constants: &[bits, group, meaning, scales, biases, extent[0], extent[1], extent[2]],
        stored: &[("X", x.dtype()), ("Y", y.dtype())],
        binds: &[Bind::All(x), w, Bind::All(y), s, b],
        params: bytemuck::bytes_of(&Params { count, width, first, rows, last }),
        groups: Groups::Line(part.len().div_ceil(4 * WORKGROUP / few.lanes)),
    })
}

impl Packed {
    /// Gradients of scales and biases, as each of them is stored, where they are wanted.
    pub(crate) fn stored_as(&self, gpu: &Gpu, grads: [Tensor; 2], need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        let [dscales, dbiases] = grads;
        let biases = self.biases.as_ref().filter(|_| need[1]);
        Ok([
            need[0].then(|| gpu.convert(&dscales, self.scales.dtype())).transpose()?,
            biases.map(|biases| gpu.convert(&dbiases, biases.dtype())).transpose()?,
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::rng::Rng;

    const DIVIDE: &str = "
        @group(0) @binding(0) var<storage, read> ab: array<vec2<u32>>;
        @compute @workgroup_size(64)
        fn main(@builtin(global_invocation_id) own: vec3<u32>) {
            words[own.x] = quotient(ab[own.x].x, ab[own.x].y);
        }";
    static EXACT: Kernel = crate::common::gpu::kernel("quotients", &[ENCODE, DIVIDE]);
    static LOW: Kernel = crate::common::gpu::kernel(
        "quotients from below",
        &["fn roughly(a: f32, b: f32) -> f32 { return a / b * (1.0 - 3e-7); }", include_str!("encode.wgsl"), DIVIDE],
    );
    static HIGH: Kernel = crate::common::gpu::kernel(
        "quotients from above",
        &["fn roughly(a: f32, b: f32) -> f32 { return a / b * (1.0 + 3e-7); }", include_str!("encode.wgsl"), DIVIDE],
    );

    #[test]
    fn quotients_are_bit_identical_to_the_cpu_for_any_driver_division() {
        let Some(gpu) = Gpu::builder().poison().open_for_test().unwrap() else { return };
        let mut rng = Rng::new(1, "quotients");
        let edges = [0u32, 1, 2, 0x7f_ffff, 0x80_0000, 0x80_0001, 0x3f80_0000, 0x7f7f_ffff, 0x7f80_0000, 0x7fc0_0000];
        let mut pairs: Vec<[u32; 2]> = edges.iter().flat_map(|&a| edges.map(|b| [a, b])).collect();
        pairs.extend(pairs.clone().iter().map(|[a, b]| [a | 1 << 31, *b]));
        while pairs.len() < 64 * 1_024 {
            let mut any = || rng.below(1 << 32) as u32;
            let (a, b) = (any(), any());
            // of any size, of near sizes, and so small that few bits stay
            pairs.push(match pairs.len() % 4 {
                0 => [a, b],
                1 => [a & 0x80ff_ffff, 0x3f80_0000 | b >> 9],
                2 => [f32::to_bits((a % 512) as f32), f32::to_bits((b % 512) as f32 / 2.0)],
                _ => [0x3f80_0000 | a >> 9, 0x3f80_0000 | b >> 9],
            });
        }
        let flat: Vec<u32> = pairs.iter().flatten().copied().collect();
        let ab = Tensor::from_slice(&flat, [flat.len()], &gpu.clone().into()).unwrap();
        for kernel in [&EXACT, &LOW, &HIGH] {
            let y = gpu.empty([pairs.len()], DType::U32).unwrap();
            gpu.launch(&Launch {
                kernel,
                entry: "main",
                constants: &[("BITS", 8)],
                stored: &[],
                binds: &[Bind::All(&ab), Bind::All(&y)],
                params: &[],
                groups: Groups::Line(pairs.len() / 64),
            })
            .unwrap();
            for (got, [a, b]) in y.to_vec::<u32>().unwrap().into_iter().zip(&pairs) {
                let (got, want) = (f32::from_bits(got), f32::from_bits(*a) / f32::from_bits(*b));
                let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
                assert!(same, "{}: {a:#x} / {b:#x} is {want:e}, not {got:e}", kernel.name);
            }
        }
    }
}
