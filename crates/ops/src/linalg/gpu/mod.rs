//! The matrix product on a GPU, for `matmul`, `linear` and other launches that multiply.

mod cut;
mod library;
mod plan;

use crate::common::gpu::ODD;
use crate::common::gpu::{to_u32, to_u32s};
use crate::quantized::Quantized;
use crate::quantized::gpu::{CODES, constants, per_group};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch, Shader};
use alluvium_core::{DType, Result, Shape, Tensor};
use library::library;
pub(crate) use plan::GemmSizes;
use plan::{GemmPlan, Gemv, GemvSide, OperandStorage, depth, plan};

const PARAMS: &str = include_str!("params.wgsl");
const RIGHT: &str = include_str!("right.wgsl");
/// Text that reads both sides of a product, four elements of either from any element on: `load_a`, `load_b`.
pub(crate) const SIDES: &str = concat!(include_str!("left.wgsl"), include_str!("right.wgsl"));
const PACKED_RIGHT: &str = include_str!("packed_right.wgsl");
/// The same after [`CODES`] with a right side that is quantized.
pub(crate) const PACKED_SIDES: &str = concat!(include_str!("left.wgsl"), include_str!("packed_right.wgsl"));
/// Text that brings tiles of both sides to shared memory, by way of `line_a` and `line_b`.
pub(crate) const BLOCKS: &str = include_str!("blocks.wgsl");
/// Text after [`BLOCKS`] that sums a tile of 64 × 64 results: `tile_sums`.
pub(crate) const NARROW_SUMS: &str = include_str!("narrow_sums.wgsl");
const LINES: &str = include_str!("lines.wgsl");
const NARROW: &str = include_str!("narrow_tile.wgsl");
const WIDE: &str = include_str!("wide_tile.wgsl");
const MATRICES: &str = include_str!("matrices.wgsl");
const F16: &str = include_str!("matrices_f16.wgsl");
const F32: &str = include_str!("matrices_f32.wgsl");
const QUADS: &str = include_str!("vec4.wgsl");
const SINGLES: &str = include_str!("scalar.wgsl");
const GEMV: &str = include_str!("gemv.wgsl");
const FEW_QUADS: &str = include_str!("few_quads.wgsl");
const FEW_SINGLES: &str = include_str!("few_singles.wgsl");

/// The kernels of tiles: of a plain right side, with results as vec4s and one by one, then the same of a quantized one.
macro_rules! tiles {
    ($name:literal, [$($plain:expr),*], [$($packed:expr),*], $($sums:expr),*) => {[
        crate::common::gpu::kernel($name, &[$($plain,)* QUADS, $($sums),*]),
        crate::common::gpu::kernel(concat!($name, ", odd"), &[$($plain,)* SINGLES, $($sums),*]),
        crate::common::gpu::kernel(concat!($name, ", quantized"), &[$($packed,)* QUADS, $($sums),*]),
        crate::common::gpu::kernel(concat!($name, ", quantized, odd"), &[$($packed,)* SINGLES, $($sums),*]),
    ]};
}

static NARROW_TILES: [Kernel; 4] = tiles!(
    "product of 64 × 64 tiles",
    [ODD, PARAMS, SIDES, LINES, BLOCKS],
    [ODD, PARAMS, CODES, PACKED_SIDES, LINES, BLOCKS],
    NARROW_SUMS,
    NARROW
);
static WIDE_TILES: [Kernel; 4] = tiles!(
    "product of 128 × 128 tiles",
    [ODD, PARAMS, SIDES, LINES, BLOCKS],
    [ODD, PARAMS, CODES, PACKED_SIDES, LINES, BLOCKS],
    WIDE
);
static F32_TILES: [Kernel; 4] =
    tiles!("product by f32 matrices", [ODD, PARAMS, RIGHT, F32], [ODD, PARAMS, CODES, PACKED_RIGHT, F32], MATRICES);
static F16_QUADS: Kernel = crate::common::gpu::kernel("product by f16 matrices", &[PARAMS, F16, QUADS, MATRICES]);
static F16_SINGLES: Kernel =
    crate::common::gpu::kernel("product by f16 matrices, odd", &[PARAMS, F16, SINGLES, MATRICES]);
static FEW: [Kernel; 4] = [
    crate::common::gpu::kernel("product of few lines", &[ODD, PARAMS, SIDES, QUADS, FEW_QUADS, GEMV]),
    crate::common::gpu::kernel("product of few lines, odd", &[ODD, PARAMS, SIDES, FEW_SINGLES, GEMV]),
    crate::common::gpu::kernel(
        "product of few lines, quantized",
        &[ODD, PARAMS, CODES, PACKED_SIDES, QUADS, FEW_QUADS, GEMV],
    ),
    crate::common::gpu::kernel(
        "product of few lines, quantized, odd",
        &[ODD, PARAMS, CODES, PACKED_SIDES, FEW_SINGLES, GEMV],
    ),
];
static SUM_QUADS: Kernel =
    crate::common::gpu::kernel("sum of a product's parts", &[PARAMS, include_str!("sum.wgsl"), QUADS]);
static SUM_SINGLES: Kernel =
    crate::common::gpu::kernel("sum of a product's parts, odd", &[PARAMS, include_str!("sum.wgsl"), SINGLES]);

/// The sides of the tiles that cooperative matrices compute: eight fragments.
const F16_SIDE: usize = 128;
const F32_SIDE: usize = 64;

/// Matrices that lie in a tensor: one, or many at equal distances.
#[derive(Clone, Copy)]
pub(crate) struct GpuMatrix<'a> {
    pub(crate) tensor: &'a Tensor,
    /// The element that the first begins at.
    pub(crate) at: usize,
    /// Elements from line to line.
    pub(crate) stride: usize,
    /// Elements from matrix to matrix.
    pub(crate) batch_stride: usize,
    /// Whether rows or columns are contiguous.
    pub(crate) order: MatOrder,
    /// The packing of its words, if it is quantized.
    pub(crate) packed: Option<Quantized<'a>>,
    /// Where the bytes that are bound begin and end: all of the tensor where it says nothing.
    pub(crate) bound_range: Option<[usize; 2]>,
}

/// The layout of a matrix in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MatOrder {
    /// Row by row.
    RowMajor,
    /// Column by column.
    ColumnMajor,
}

impl<'a> GpuMatrix<'a> {
    /// All of a tensor as matrices whose rows, or columns if they lie so, have `width` elements.
    pub(crate) fn new(tensor: &'a Tensor, width: usize, batch_stride: usize) -> Self {
        GpuMatrix {
            tensor,
            at: 0,
            stride: width,
            batch_stride,
            order: MatOrder::RowMajor,
            packed: None,
            bound_range: None,
        }
    }

    /// A quantized matrix whose rows have `width` values: a right side.
    pub(crate) fn packed(q: Quantized<'a>, width: usize) -> Self {
        GpuMatrix { packed: Some(q), ..GpuMatrix::new(q.w, width, 0) }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        let order = if self.order == MatOrder::RowMajor { MatOrder::ColumnMajor } else { MatOrder::RowMajor };
        GpuMatrix { order, ..self }
    }

    /// The matrix without its first `lines` rows or columns.
    pub(crate) fn after(self, lines: usize) -> Self {
        GpuMatrix { at: self.at + lines * self.stride, ..self }
    }

    /// The dtype that its elements are stored in; packed codes, which a text of its own unpacks, count as f32.
    fn storage(&self) -> DType {
        let dtype = self.tensor.dtype();
        if dtype.is_float() { dtype } else { DType::F32 }
    }

    fn bind(&self) -> Bind<'a> {
        match self.bound_range {
            Some([first, end]) => Bind::Part(self.tensor, first..end),
            None => Bind::All(self.tensor),
        }
    }

    /// Whether each line begins at a whole vec4.
    fn is_even(&self) -> bool {
        [self.at, self.stride, self.batch_stride].iter().all(|n| n.is_multiple_of(4))
    }
}

/// `c = alpha · a · b + beta · c`, for each pair of matrices; sums in f32.
pub(crate) struct Gemm<'a> {
    /// `[M, K]`
    pub(crate) a: GpuMatrix<'a>,
    /// `[K, N]`
    pub(crate) b: GpuMatrix<'a>,
    /// `[M, N]` by rows, f32; other floating types where each line begins at a whole vec4 and ends at one.
    pub(crate) c: GpuMatrix<'a>,
    pub(crate) sizes: GemmSizes,
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    size: [u32; 3],
    part: u32,
    splits: u32,
    a: [u32; 3],
    b: [u32; 3],
    c: [u32; 3],
    alpha: f32,
    beta: f32,
}

fn place(mat: &GpuMatrix<'_>) -> Result<[u32; 3]> {
    to_u32s([mat.at, mat.stride, mat.batch_stride])
}

/// The product as a new tensor of this dtype.
pub(crate) fn product(
    gpu: &Gpu,
    [a, b]: [GpuMatrix<'_>; 2],
    sizes: GemmSizes,
    shape: Shape,
    dtype: DType,
) -> Result<Tensor> {
    if gpu.has_library_products() && dtype == a.tensor.dtype() {
        let c = gpu.empty(shape, dtype)?;
        let to = GpuMatrix::new(&c, sizes.n, sizes.m * sizes.n);
        if library(gpu, &Gemm { a, b, c: to, sizes, alpha: 1.0, beta: 0.0 })? {
            return Ok(c);
        }
    }
    let aside = matches!(plan(sizes, stored(gpu, &a, &b)), GemmPlan::Gemv(Gemv { side: GemvSide::Right, .. }));
    let largest = a.bytes().max(b.bytes()).max(shape.elements() * dtype.size());
    // half-precision results that do not fill whole vec4s, or that are computed in pieces, are rounded afterwards
    let direct = dtype == DType::F32 || (sizes.n.is_multiple_of(4) && !aside && largest <= gpu.limits().binding);
    let c = gpu.empty(shape, if direct { dtype } else { DType::F32 })?;
    let to = GpuMatrix::new(&c, sizes.n, sizes.m * sizes.n);
    gemm(gpu, &Gemm { a, b, c: to, sizes, alpha: 1.0, beta: 0.0 })?;
    gpu.convert(&c, dtype)
}

/// Writes a product into memory that is there, in pieces where a binding does not hold its tensors; then results are
/// f32.
pub(crate) fn gemm(gpu: &Gpu, args: &Gemm<'_>) -> Result<()> {
    if library(gpu, args)? {
        return Ok(());
    }
    let run = |piece: &Gemm<'_>| by(gpu, piece, plan(piece.sizes, stored(gpu, &piece.a, &piece.b)));
    cut::pieces(gpu.limits().binding, args, &run)
}

impl Params {
    fn of(args: &Gemm<'_>) -> Result<Self> {
        let Gemm { a, b, c, sizes, alpha, beta } = args;
        Ok(Params {
            size: to_u32s([sizes.m, sizes.n, sizes.k])?,
            part: to_u32(sizes.k)?,
            splits: 1,
            a: place(a)?,
            b: place(b)?,
            c: place(c)?,
            alpha: *alpha,
            beta: *beta,
        })
    }
}

fn by(gpu: &Gpu, args: &Gemm<'_>, plan: GemmPlan) -> Result<()> {
    let sizes = args.sizes;
    let params = Params::of(args)?;
    match plan {
        GemmPlan::Gemv(few) => lines(gpu, args, few, params),
        GemmPlan::Tiles { side, part, splits } | GemmPlan::Matrices { side, part, splits } => {
            let width = sizes.n.next_multiple_of(4);
            let fits = sizes.count * splits * sizes.m * width * 4 <= gpu.limits().binding;
            let (part, splits) = if fits { (part, splits) } else { (part * splits, 1) };
            let params = Params { part: to_u32(part)?, splits: to_u32(splits)?, ..params };
            let tiles = if matches!(plan, GemmPlan::Tiles { .. }) { tiles } else { matrices };
            if splits == 1 {
                return tiles(gpu, args, side, params);
            }
            let parts = gpu.empty([sizes.count * splits, sizes.m, width], DType::F32)?;
            let to = GpuMatrix::new(&parts, width, sizes.m * width);
            let whole = Gemm { c: to, alpha: 1.0, beta: 0.0, ..*args };
            tiles(gpu, &whole, side, Params { c: place(&to)?, alpha: 1.0, beta: 0.0, ..params })?;
            sum(gpu, &parts, args, Params { size: [params.size[0], params.size[1], to_u32(sizes.count)?], ..params })
        }
    }
}

fn stored(gpu: &Gpu, a: &GpuMatrix<'_>, b: &GpuMatrix<'_>) -> OperandStorage {
    let (limits, packed) = (gpu.limits(), b.packed.is_some());
    let matrices = match (a.tensor.dtype(), if packed { DType::F32 } else { b.tensor.dtype() }) {
        _ if !(a.is_even() && b.is_even()) => None,
        (DType::F16, DType::F16) if limits.matrices_f16 => Some(F16_SIDE),
        (DType::F32, DType::F32) if limits.matrices_f32 => Some(F32_SIDE),
        _ => None,
    };
    let k_inner = [a.order == MatOrder::RowMajor, b.order == MatOrder::ColumnMajor];
    OperandStorage { k_inner, packed, matrices, few_rows: few_rows(gpu) }
}

/// Rows of a layer's input up to which a row's sums have one order, whatever the number of rows. More than eight are
/// left to the GPU's own library where there is one.
pub(crate) fn few_rows(gpu: &Gpu) -> usize {
    if gpu.has_library_products() { 8 } else { 32 }
}

/// Whether results are written as whole vec4s: a scratch matrix of parts may have its lines filled up.
fn by_quads(args: &Gemm<'_>) -> bool {
    args.c.is_even() && (args.sizes.n.is_multiple_of(4) || args.c.stride > args.sizes.n)
}

/// The kernel of a family for this right side and these results.
fn choose(family: &'static [Kernel; 4], args: &Gemm<'_>) -> &'static Kernel {
    &family[2 * usize::from(args.b.packed.is_some()) + usize::from(!by_quads(args))]
}

/// The bindings of a kernel.
fn sides<'a>(a: &GpuMatrix<'a>, b: &GpuMatrix<'a>, c: &GpuMatrix<'a>) -> Vec<Bind<'a>> {
    let mut binds = vec![a.bind(), b.bind(), c.bind()];
    binds.extend(b.packed.iter().flat_map(per_group));
    binds
}

/// The constants of a kernel, with those of the packing of a quantized side.
fn with_meaning(b: &GpuMatrix<'_>, of_kernel: &[(&'static str, u32)]) -> Vec<(&'static str, u32)> {
    let meaning = b.packed.iter().flat_map(constants);
    of_kernel.iter().copied().chain(meaning).collect()
}

fn flag(set: bool) -> u32 {
    u32::from(set)
}

fn tiles(gpu: &Gpu, args: &Gemm<'_>, side: usize, params: Params) -> Result<()> {
    let Gemm { a, b, c, sizes, .. } = args;
    let depth = depth(side);
    let whole = [sizes.m % side, sizes.n % side, sizes.k % depth] == [0; 3];
    let kernel = choose(if side == 128 { &WIDE_TILES } else { &NARROW_TILES }, args);
    let groups = sizes.count * params.splits as usize;
    gpu.launch(&Launch {
        kernel,
        entry: "tile",
        constants: &with_meaning(
            b,
            &[
                ("TILE", side as u32),
                ("DEPTH", depth as u32),
                ("A_K_INNER", flag(a.order == MatOrder::RowMajor)),
                ("B_K_INNER", flag(b.order == MatOrder::ColumnMajor)),
                ("A_ODD", flag(!a.is_even())),
                ("B_ODD", flag(!b.is_even())),
                ("EDGE", flag(!whole)),
                ("C_AT", 2),
            ],
        ),
        stored: &[("A", a.storage()), ("B", b.storage()), ("C", c.tensor.dtype())],
        binds: &sides(a, b, c),
        params: bytemuck::bytes_of(&params),
        groups: Groups::Grid([sizes.n.div_ceil(side), sizes.m.div_ceil(side), groups]),
    })
}

/// The same by cooperative matrices, of f16 in tiles of 128 or of f32 in tiles of 64.
fn matrices(gpu: &Gpu, args: &Gemm<'_>, side: usize, params: Params) -> Result<()> {
    let Gemm { a, b, c, sizes, .. } = args;
    let whole = [sizes.m % side, sizes.n % side, sizes.k % 32] == [0; 3];
    let kernel = match (side, by_quads(args)) {
        (F16_SIDE, true) => &F16_QUADS,
        (F16_SIDE, false) => &F16_SINGLES,
        _ => choose(&F32_TILES, args),
    };
    let groups = sizes.count * params.splits as usize;
    gpu.launch(&Launch {
        kernel,
        entry: "tile",
        constants: &with_meaning(
            b,
            &[
                ("A_K_INNER", flag(a.order == MatOrder::RowMajor)),
                ("B_K_INNER", flag(b.order == MatOrder::ColumnMajor)),
                ("B_ODD", 0),
                ("EDGE", flag(!whole)),
                ("C_AT", 2),
            ],
        ),
        stored: &[("B", b.storage()), ("C", c.tensor.dtype())],
        binds: &sides(a, b, c),
        params: bytemuck::bytes_of(&params),
        groups: Groups::Grid([sizes.n.div_ceil(side), sizes.m.div_ceil(side), groups]),
    })
}

/// Kernels that no case reaches, as adapters get them: cases are too small for tiles of 128, few adapters have
/// cooperative matrices, and packed rows are never odd.
///
/// # Errors
/// Never: every storage dtype here is a floating one.
pub(crate) fn unreached_shaders() -> Result<Vec<Shader>> {
    let codes = [("BITS", 5), ("GROUP", 64), ("MEANING", 0), ("SCALES", 2), ("BIASES", 2)];
    let mut shaders = Vec::new();
    for (a, b, edge) in [(0, 0, 0), (1, 0, 1), (0, 1, 1), (1, 1, 0)] {
        let sides = [("A_K_INNER", a), ("B_K_INNER", b), ("B_ODD", 0), ("EDGE", edge), ("C_AT", 2)];
        let of_tiles = [("TILE", 128), ("DEPTH", depth(128) as u32), ("A_ODD", edge)];
        let constants = [&sides[..], &codes, &of_tiles].concat();
        let stored = [("A", DType::BF16), ("B", DType::F32), ("C", DType::F16)];
        for kernel in &WIDE_TILES {
            shaders.push(kernel.shader("tile", &constants, &stored)?);
        }
        let constants = [&sides[..], &codes].concat();
        let by_matrices = F32_TILES.iter().chain([&F16_QUADS, &F16_SINGLES]);
        for kernel in by_matrices {
            shaders.push(kernel.shader("tile", &constants, &stored[1..])?);
        }
    }
    // packed rows are a multiple of 32 values long, so a few lines of their products fill whole vec4s
    let of_few =
        [("FEW", 2), ("LANES", 16), ("A_K_INNER", 1), ("B_K_INNER", 1), ("A_ODD", 1), ("B_ODD", 0), ("C_AT", 2)];
    let stored = [("A", DType::F32), ("B", DType::F32), ("C", DType::F32)];
    shaders.push(FEW[3].shader("few", &[&of_few[..], &codes].concat(), &stored)?);
    Ok(shaders)
}

/// Adds up what the splits of each sum made.
fn sum(gpu: &Gpu, parts: &Tensor, args: &Gemm<'_>, params: Params) -> Result<()> {
    let Gemm { c, sizes, .. } = args;
    let quads = c.is_even() && sizes.n.is_multiple_of(4);
    gpu.launch(&Launch {
        kernel: if quads { &SUM_QUADS } else { &SUM_SINGLES },
        entry: "sum",
        constants: &[("C_AT", 1)],
        stored: &[("C", c.tensor.dtype())],
        binds: &[Bind::All(parts), c.bind()],
        params: bytemuck::bytes_of(&params),
        groups: Groups::Line((sizes.count * sizes.m * sizes.n.div_ceil(4)).div_ceil(256)),
    })
}

/// A product of a few rows or columns with a matrix.
fn lines(gpu: &Gpu, args: &Gemm<'_>, few: Gemv, params: Params) -> Result<()> {
    let Gemm { a, b, c, sizes, .. } = args;
    // of the product's transpose the sides change places
    let (few_side, many_side, few_lines, many) = match few.side {
        GemvSide::Left => (*a, b.t(), sizes.m, sizes.n),
        GemvSide::Right => (b.t(), *a, sizes.n, sizes.m),
    };
    let (stride, step) = match few.side {
        GemvSide::Left => (c.stride, 1),
        GemvSide::Right => (1, c.stride),
    };
    let params = Params {
        size: to_u32s([few_lines, many, sizes.k])?,
        part: to_u32(step)?,
        splits: to_u32(sizes.count)?,
        a: place(&few_side)?,
        b: place(&many_side)?,
        c: to_u32s([c.at, stride, c.batch_stride])?,
        ..params
    };
    let quads = few.side == GemvSide::Left && by_quads(args);
    gpu.launch(&Launch {
        kernel: &FEW[2 * usize::from(many_side.packed.is_some()) + usize::from(!quads)],
        entry: "few",
        constants: &with_meaning(
            &many_side,
            &[
                ("FEW", few.lines as u32),
                ("LANES", few.lanes as u32),
                ("A_K_INNER", flag(few_side.order == MatOrder::RowMajor)),
                ("B_K_INNER", flag(many_side.order == MatOrder::RowMajor)),
                ("A_ODD", flag(!few_side.is_even() || few_side.order == MatOrder::ColumnMajor)),
                ("B_ODD", flag(!many_side.is_even())),
                ("C_AT", 2),
            ],
        ),
        stored: &[("A", few_side.storage()), ("B", many_side.storage()), ("C", c.tensor.dtype())],
        binds: &sides(&few_side, &many_side, c),
        params: bytemuck::bytes_of(&params),
        groups: Groups::Line(many.div_ceil(4 * 256 / few.lanes) * sizes.count),
    })
}

#[cfg(test)]
mod tests;
