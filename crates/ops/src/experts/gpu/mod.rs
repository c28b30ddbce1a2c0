//! Products of rows with the matrices of the experts that were chosen for them, on a GPU: the choices are sorted there,
//! so that no routing is ever waited for.

mod plan;
mod weights;

use crate::common::gpu::ODD;
use crate::common::gpu::{to_u32, to_u32s};
use crate::common::ids::outside;
use crate::linalg::gpu::{BLOCKS, NARROW_SUMS, PACKED_SIDES, SIDES};
use crate::quantized::gpu::CODES;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Dims, Result, Shape, Tensor};
use plan::TILE;
pub(crate) use plan::piece;
use plan::{ExpertPlan, ExpertSizes, plan};
pub(crate) use weights::ExpertWeights;

const PARAMS: &str = include_str!("params.wgsl");
const QUADS: &str = include_str!("vec4.wgsl");
const SINGLES: &str = include_str!("scalar.wgsl");
const ROWS: &str = include_str!("rows.wgsl");
const JOB: &str = include_str!("job.wgsl");
const FEW: &str = include_str!("gemv.wgsl");
const TILES: &str = include_str!("tile.wgsl");
const GRADIENT_TEXT: &str = include_str!("gradient.wgsl");

static SORT: Kernel = crate::common::gpu::kernel("choices by expert", &[include_str!("sort.wgsl")]);
/// Of values and of codes, each with results as vec4s and one by one.
static TILE_KERNELS: [[Kernel; 2]; 2] = [
    [
        crate::common::gpu::kernel(
            "rows times experts",
            &[ODD, PARAMS, SIDES, ROWS, BLOCKS, NARROW_SUMS, QUADS, TILES],
        ),
        crate::common::gpu::kernel(
            "rows times experts, odd",
            &[ODD, PARAMS, SIDES, ROWS, BLOCKS, NARROW_SUMS, SINGLES, TILES],
        ),
    ],
    [
        crate::common::gpu::kernel(
            "rows times quantized experts",
            &[ODD, PARAMS, CODES, PACKED_SIDES, ROWS, BLOCKS, NARROW_SUMS, QUADS, TILES],
        ),
        crate::common::gpu::kernel(
            "rows times quantized experts, odd",
            &[ODD, PARAMS, CODES, PACKED_SIDES, ROWS, BLOCKS, NARROW_SUMS, SINGLES, TILES],
        ),
    ],
];
static GRADIENT: [Kernel; 2] = [
    crate::common::gpu::kernel("gradient of experts", &[ODD, PARAMS, SIDES, GRADIENT_TEXT, BLOCKS, NARROW_SUMS, QUADS]),
    crate::common::gpu::kernel(
        "gradient of experts, odd",
        &[ODD, PARAMS, SIDES, GRADIENT_TEXT, BLOCKS, NARROW_SUMS, SINGLES],
    ),
];
static FEW_KERNELS: [Kernel; 2] = [
    crate::common::gpu::kernel(
        "few rows times experts",
        &[ODD, PARAMS, SIDES, include_str!("dense_units.wgsl"), JOB, FEW],
    ),
    crate::common::gpu::kernel(
        "few rows times quantized experts",
        &[ODD, PARAMS, CODES, PACKED_SIDES, include_str!("packed_units.wgsl"), JOB, FEW],
    ),
];
static SUM: Kernel = crate::common::gpu::kernel("sum over choices", &[include_str!("sum.wgsl")]);

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;
/// Elements of a sum that a tile holds.
const DEPTH: u32 = 32;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    n: u32,
    k: u32,
    stride: u32,
    outer: u32,
    width: u32,
    shared: u32,
    experts: u32,
    jobs: u32,
}

/// The choices of all tokens as a GPU has them.
pub(crate) struct RoutedChoices<'a> {
    ids: &'a Tensor,
    sizes: ExpertSizes,
    /// RoutedChoices that share a row of `x`: those of a token, or 1 where each has its own.
    shared: usize,
}

/// The choices by expert.
pub(crate) struct SortedChoices {
    /// Where the places of each expert begin, and those of ids that name none.
    starts: Tensor,
    order: Tensor,
}

/// Which way a product goes through the matrices.
#[derive(Clone, Copy, PartialEq)]
enum Pass {
    /// Sums along the rows of a matrix.
    Forward,
    /// Sums across them.
    Back,
}

impl<'a> RoutedChoices<'a> {
    /// The choices that `experts` holds; `inner` values are a row of a matrix. Ids that the CPU knows are
    /// checked; others are not waited for.
    ///
    /// # Errors
    /// When an id that is known names no expert.
    pub(crate) fn new(op: &'static str, ids: &'a Tensor, dims: &Dims, inner: usize) -> Result<Self> {
        let known = ids.host_mirror().unwrap_or_default();
        if let Some(place) = known.iter().position(|&id| id as usize >= dims['E']) {
            return Err(outside(op, "experts", ids, (place, known[place]), ('E', dims['E'])));
        }
        let sizes = ExpertSizes { choices: dims['N'] * dims['K'], experts: dims['E'], outer: dims['O'], inner };
        Ok(RoutedChoices { ids, sizes, shared: if dims['R'] == dims['N'] { dims['K'] } else { 1 } })
    }

    pub(crate) fn sort(&self, gpu: &Gpu) -> Result<SortedChoices> {
        let ExpertSizes { choices, experts, .. } = self.sizes;
        let starts = gpu.empty([experts + 2], DType::U32)?;
        let order = gpu.empty([choices], DType::U32)?;
        gpu.launch(&Launch {
            kernel: &SORT,
            entry: "sort",
            constants: &[],
            stored: &[],
            binds: &[self.ids, &starts, &order].map(Bind::All),
            params: bytemuck::bytes_of(&to_u32s([choices, experts, 0, 0])?),
            groups: Groups::Line(experts + 1),
        })?;
        Ok(SortedChoices { starts, order })
    }

    /// The sorted choices in jobs of up to `lines` of one expert.
    fn jobs(&self, gpu: &Gpu, sorted: &SortedChoices, lines: usize) -> Result<Tensor> {
        let most = plan::most_jobs(self.sizes, lines);
        let jobs = gpu.empty([most, 2], DType::U32)?;
        gpu.launch(&Launch {
            kernel: &SORT,
            entry: "cut",
            constants: &[],
            stored: &[],
            binds: &[&sorted.starts, &jobs].map(Bind::All),
            params: bytemuck::bytes_of(&to_u32s([0, self.sizes.experts, lines, most])?),
            groups: Groups::Line(1),
        })?;
        Ok(jobs)
    }

    fn params(&self, way: Pass, jobs: usize) -> Result<Params> {
        let ExpertSizes { experts, outer, inner, .. } = self.sizes;
        let (n, k, shared) = if way == Pass::Forward { (outer, inner, self.shared) } else { (inner, outer, 1) };
        let [n, k, outer, width, shared, experts, jobs] = to_u32s([n, k, outer, inner, shared, experts, jobs])?;
        Ok(Params { n, k, stride: k, outer, width, shared, experts, jobs })
    }

    /// `y[choice] = x · w[expert]ᵀ` for all choices, in the dtype of `x`.
    ///
    /// # Errors
    /// When memory is used up, or a tensor is larger than a binding.
    pub(crate) fn forward(&self, gpu: &Gpu, x: &Tensor, w: ExpertWeights<'_>, shape: Shape) -> Result<Tensor> {
        match plan(self.sizes) {
            ExpertPlan::Tiles => self.tiles(gpu, (&self.sort(gpu)?, Pass::Forward), (x, w), shape),
            ExpertPlan::Each { lanes } => self.few(gpu, (x, w), None, [1, lanes], shape),
            ExpertPlan::Runs { lines, lanes } => self.few(gpu, (x, w), Some(self.sort(gpu)?), [lines, lanes], shape),
        }
    }

    /// Up to `lines` rows at once with each matrix.
    fn few(
        &self,
        gpu: &Gpu,
        (x, w): (&Tensor, ExpertWeights<'_>),
        sorted: Option<SortedChoices>,
        [lines, lanes]: [usize; 2],
        shape: Shape,
    ) -> Result<Tensor> {
        let y = gpu.empty(shape, DType::F32)?;
        let jobs = sorted.as_ref().map(|sorted| self.jobs(gpu, sorted, lines)).transpose()?;
        // what is not sorted has neither jobs nor starts, and does not read them
        let (order, starts) = sorted.as_ref().map_or((self.ids, self.ids), |sorted| (&sorted.order, &sorted.starts));
        let count = jobs.as_ref().map_or(self.sizes.choices, |jobs| jobs.shape()[0]);
        let [x_bind, y_bind, order, jobs, starts] =
            [x, &y, order, jobs.as_ref().unwrap_or(self.ids), starts].map(Bind::All);
        let [w_bind, scales, biases] = w.binds();
        gpu.launch(&Launch {
            kernel: &FEW_KERNELS[w.number()],
            entry: "few",
            constants: &w.constants(
                self.sizes.inner,
                &[
                    ("FEW", lines as u32),
                    ("LANES", lanes as u32),
                    ("SORTED", u32::from(sorted.is_some())),
                    ("A_ODD", u32::from(!self.sizes.inner.is_multiple_of(4))),
                ],
            ),
            stored: &w.stored(x.dtype(), None),
            binds: &[x_bind, w_bind, y_bind, scales, biases, order, jobs, starts],
            params: bytemuck::bytes_of(&self.params(Pass::Forward, count)?),
            groups: Groups::Line(self.sizes.outer.div_ceil(4 * WORKGROUP / lanes) * count),
        })?;
        gpu.convert(&y, x.dtype())
    }

    /// One tile of choices after the other: `x` has rows for them, or `dy` on the way back.
    fn tiles(
        &self,
        gpu: &Gpu,
        (sorted, way): (&SortedChoices, Pass),
        (x, w): (&Tensor, ExpertWeights<'_>),
        shape: Shape,
    ) -> Result<Tensor> {
        let jobs = self.jobs(gpu, sorted, TILE)?;
        let params = self.params(way, jobs.shape()[0])?;
        let quads = params.n.is_multiple_of(4);
        let y = gpu.empty(shape, if quads { x.dtype() } else { DType::F32 })?;
        let [x_bind, y_bind, order, jobs_bind, starts] = [x, &y, &sorted.order, &jobs, &sorted.starts].map(Bind::All);
        let [w_bind, scales, biases] = w.binds();
        gpu.launch(&Launch {
            kernel: &TILE_KERNELS[w.number()][usize::from(!quads)],
            entry: "tile",
            constants: &w.constants(
                self.sizes.inner,
                &[
                    ("TILE", TILE as u32),
                    ("DEPTH", DEPTH),
                    ("A_K_INNER", 1),
                    ("B_K_INNER", u32::from(way == Pass::Forward)),
                    ("A_ODD", u32::from(!params.stride.is_multiple_of(4))),
                ],
            ),
            stored: &w.stored(x.dtype(), Some(y.dtype())),
            binds: &[x_bind, w_bind, y_bind, scales, biases, order, jobs_bind, starts],
            params: bytemuck::bytes_of(&params),
            groups: Groups::Grid([(params.n as usize).div_ceil(TILE), jobs.shape()[0], 1]),
        })?;
        gpu.convert(&y, x.dtype())
    }

    /// `dx`: what the choices' gradients `dy` mean for each row of `x`, summed over those that share it, in their
    /// order.
    ///
    /// # Errors
    /// As [`RoutedChoices::forward`].
    pub(crate) fn back(
        &self,
        gpu: &Gpu,
        sorted: &SortedChoices,
        (dy, w): (&Tensor, ExpertWeights<'_>),
        shape: Shape,
        dtype: DType,
    ) -> Result<Tensor> {
        let way = (sorted, Pass::Back);
        let (choices, inner) = (self.sizes.choices, self.sizes.inner);
        if self.shared == 1 {
            return gpu.convert(&self.tiles(gpu, way, (dy, w), shape)?, dtype);
        }
        // sums round once, at their end
        let each = self.tiles(gpu, way, (&gpu.widen(dy)?, w), Shape::from([choices, inner]))?;
        let sum = gpu.empty(shape, DType::F32)?;
        gpu.launch(&Launch {
            kernel: &SUM,
            entry: "main",
            constants: &[],
            stored: &[],
            binds: &[&each, &sum].map(Bind::All),
            params: bytemuck::bytes_of(&to_u32s([sum.elements(), inner, self.shared])?),
            groups: Groups::Line(sum.elements().div_ceil(WORKGROUP)),
        })?;
        gpu.convert(&sum, dtype)
    }

    /// `dw[expert] = Σ dyᵀ · x` over its choices, for the experts from `first` on that `shape` has.
    ///
    /// # Errors
    /// As [`RoutedChoices::forward`].
    pub(crate) fn gradient(
        &self,
        gpu: &Gpu,
        (sorted, first): (&SortedChoices, usize),
        [dy, x]: [&Tensor; 2],
        shape: Shape,
        dtype: DType,
    ) -> Result<Tensor> {
        let ExpertSizes { outer, inner, .. } = self.sizes;
        let quads = inner.is_multiple_of(4);
        let dw = gpu.empty(shape, if quads { dtype } else { DType::F32 })?;
        let params = Params { n: to_u32(inner)?, shared: to_u32(self.shared)?, ..self.params(Pass::Forward, first)? };
        let [dy_bind, x_bind, to, order, starts] = [dy, x, &dw, &sorted.order, &sorted.starts].map(Bind::All);
        gpu.launch(&Launch {
            kernel: &GRADIENT[usize::from(!quads)],
            entry: "gradient",
            constants: &[
                ("TILE", TILE as u32),
                ("DEPTH", DEPTH),
                ("A_K_INNER", 0),
                ("B_K_INNER", 0),
                ("A_ODD", u32::from(!outer.is_multiple_of(4))),
                ("B_ODD", u32::from(!quads)),
            ],
            stored: &[("A", dy.dtype()), ("B", x.dtype()), ("C", dw.dtype())],
            binds: &[dy_bind, x_bind, to, Bind::Unused, Bind::Unused, order, Bind::Unused, starts],
            params: bytemuck::bytes_of(&params),
            groups: Groups::Grid([inner.div_ceil(TILE), outer.div_ceil(TILE), shape[0]]),
        })?;
        gpu.convert(&dw, dtype)
    }
}
