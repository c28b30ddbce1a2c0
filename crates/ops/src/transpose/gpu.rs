//! Tiles of words through shared memory; longer units and shorter elements are gathered.

use crate::common::gpu::to_u32s;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{Result, Tensor};

const SIZES: &str = include_str!("kernel.wgsl");
const UNITS: &str = include_str!("units.wgsl");
const WORD: &str = "alias Unit = u32;\n";

static QUADS: Kernel = crate::common::gpu::kernel("transpose of quads", &["alias Unit = vec4<u32>;\n", SIZES, UNITS]);
static WORDS: Kernel = crate::common::gpu::kernel("transpose of u32", &[WORD, SIZES, UNITS]);
static TILES: Kernel = crate::common::gpu::kernel("transpose by tiles", &[WORD, SIZES, include_str!("tiles.wgsl")]);
static ELEMENTS: Kernel =
    crate::common::gpu::kernel("transpose of elements", &[WORD, SIZES, include_str!("elements.wgsl")]);

/// Invocations of a workgroup, and the side of a tile.
const WORKGROUP: usize = 256;
const SIDE: usize = 32;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
    rows: u32,
    middle: u32,
    columns: u32,
    inner: u32,
}

pub(super) fn forward(gpu: &Gpu, x: &Tensor, low: usize, high: usize) -> Result<Tensor> {
    let (shape, size) = (x.shape(), x.dtype().size());
    if low == high {
        return Ok(x.detach());
    }
    let product = |axes: &[usize]| axes.iter().product::<usize>();
    let (rows, middle, columns) = (shape[low], product(&shape[low + 1..high]), shape[high]);
    let inner = product(&shape[high + 1..]);
    let matrices = product(&shape[..low]) * middle;
    let per_word = 4 / size;
    let (kernel, unit) = match inner * size {
        4 => (&TILES, per_word),
        bytes if bytes.is_multiple_of(16) => (&QUADS, 4 * per_word),
        bytes if bytes.is_multiple_of(4) => (&WORDS, per_word),
        _ => (&ELEMENTS, 1),
    };
    let units = shape.elements() / unit;
    let (count, groups) = match inner * size {
        4 => (matrices, matrices * rows.div_ceil(SIDE) * columns.div_ceil(SIDE)),
        bytes if bytes.is_multiple_of(4) => (units, units.div_ceil(WORKGROUP)),
        _ => (units, units.div_ceil(per_word * WORKGROUP)),
    };
    let [count, rows, middle, columns, inner] = to_u32s([count, rows, middle, columns, inner / unit])?;
    let y = gpu.empty(shape.with(low, shape[high]).with(high, shape[low]), x.dtype())?;
    gpu.launch(&Launch {
        kernel,
        entry: "main",
        constants: &[("PER", per_word as u32)],
        stored: &[],
        binds: &[Bind::All(x), Bind::All(&y)],
        params: bytemuck::bytes_of(&Params { count, rows, middle, columns, inner }),
        groups: Groups::Line(groups),
    })?;
    Ok(y)
}
