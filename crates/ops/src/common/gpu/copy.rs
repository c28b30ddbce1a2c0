//! The copy of rows on a GPU that concatenation, slices, repeats and writes into caches share.

use crate::common::gpu::ALIGNMENT;
use crate::common::gpu::to_u32s;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{Result, Tensor};

const ROWS: &str = include_str!("copy.wgsl");

static QUADS: Kernel = crate::common::gpu::kernel("copy of quads", &["alias Unit = vec4<u32>;\n", ROWS]);
static WORDS: Kernel = crate::common::gpu::kernel("copy of u32", &["alias Unit = u32;\n", ROWS]);
static ELEMENTS: Kernel = crate::common::gpu::kernel("copy of elements", &[include_str!("elements.wgsl")]);

/// Invocations of a workgroup.
const WORKGROUP: usize = 256;

/// Where rows begin in a tensor, and how far apart they are, in elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyPlace<'a> {
    pub(crate) tensor: &'a Tensor,
    pub(crate) first: usize,
    pub(crate) stride: usize,
}

/// Rows of `width` elements to be written to `to`: those of `from`, each `repeat` times in turn, or zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowCopy<'a> {
    pub(crate) to: CopyPlace<'a>,
    pub(crate) from: Option<CopyPlace<'a>>,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) repeat: usize,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
    width: u32,
    y_first: u32,
    y_stride: u32,
    x_first: u32,
    x_stride: u32,
    last: u32,
}

/// The elements of a tensor in memory that is not shared.
pub(crate) fn duplicate(gpu: &Gpu, x: &Tensor) -> Result<Tensor> {
    let y = gpu.empty(x.shape(), x.dtype())?;
    let place = |tensor| CopyPlace { tensor, first: 0, stride: x.elements() };
    RowCopy { to: place(&y), from: Some(place(x)), rows: 1, width: x.elements(), repeat: 1 }.copy(gpu)?;
    Ok(y)
}

impl RowCopy<'_> {
    /// Runs the copy in as many launches as bindings need. What is repeated has rows of whole words.
    pub(crate) fn copy(mut self, gpu: &Gpu) -> Result<()> {
        let whole = |place: &CopyPlace<'_>| place.stride == self.width;
        if self.rows == 1 || self.repeat == 1 && whole(&self.to) && self.from.as_ref().is_none_or(whole) {
            // one long row
            self.width *= self.rows;
            self.rows = 1;
            self.to.stride = self.width;
            self.from.iter_mut().for_each(|from| from.stride = self.width);
        }
        let size = self.to.tensor.dtype().size();
        let aligned = |bytes: usize| {
            let places = std::iter::once(&self.to).chain(&self.from);
            let mut all = places.flat_map(|place| [place.first, place.stride]).chain([self.width]);
            all.all(|n| (n * size).is_multiple_of(bytes))
        };
        if aligned(16) {
            self.by_unit(gpu, &QUADS, 16)
        } else if aligned(4) {
            self.by_unit(gpu, &WORDS, 4)
        } else {
            self.by_element(gpu, 4 / size)
        }
    }

    fn entry(&self) -> &'static str {
        if self.from.is_some() { "rows" } else { "zeros" }
    }

    /// Units of this many bytes; all sizes and offsets are multiples.
    fn by_unit(&self, gpu: &Gpu, kernel: &'static Kernel, unit: usize) -> Result<()> {
        let per = unit / self.to.tensor.dtype().size();
        let room = gpu.limits().binding - ALIGNMENT;
        // a single row is cut anywhere, several are cut between rows that are not the same one repeated
        let (rows, width) = if self.rows == 1 {
            (1, (self.width / per).min(room / unit))
        } else {
            let widest = self.to.stride.max(self.from.map_or(0, |from| from.stride)) / per * unit;
            ((room / widest / self.repeat).max(1) * self.repeat, self.width / per)
        };
        for first in (0..self.rows).step_by(rows) {
            let rows = rows.min(self.rows - first);
            for column in (0..self.width / per).step_by(width) {
                let width = width.min(self.width / per - column);
                // bytes of a tensor from where a binding may start, and how many units later its rows begin
                let bind = |place: &CopyPlace<'_>, first: usize, rows: usize| {
                    let stride = place.stride / per;
                    let begin = place.first / per + first * stride + column;
                    let end = begin + (rows - 1) * stride + width;
                    let aligned = begin * unit / ALIGNMENT * ALIGNMENT;
                    (aligned..end * unit, begin - aligned / unit, stride)
                };
                let (y_bytes, y_first, y_stride) = bind(&self.to, first, rows);
                let mut binds = vec![Bind::Part(self.to.tensor, y_bytes)];
                let (mut x_first, mut x_stride) = (0, 0);
                if let Some(from) = &self.from {
                    let x_bytes;
                    (x_bytes, x_first, x_stride) = bind(from, first / self.repeat, rows.div_ceil(self.repeat));
                    binds.push(Bind::Part(from.tensor, x_bytes));
                }
                let numbers = [rows * width, width, y_first, y_stride, x_first, x_stride, self.repeat];
                let [count, width, y_first, y_stride, x_first, x_stride, last] = to_u32s(numbers)?;
                gpu.launch(&Launch {
                    kernel,
                    entry: self.entry(),
                    constants: &[],
                    stored: &[],
                    binds: &binds,
                    params: bytemuck::bytes_of(&Params { count, width, y_first, y_stride, x_first, x_stride, last }),
                    groups: Groups::Line(numbers[0].div_ceil(WORKGROUP)),
                })?;
            }
        }
        Ok(())
    }

    /// Elements of which `per` make a word, at any place.
    fn by_element(&self, gpu: &Gpu, per: usize) -> Result<()> {
        let end = self.to.first + (self.rows - 1) * self.to.stride + self.width;
        let words = end.div_ceil(per) - self.to.first / per;
        let (x_first, x_stride) = self.from.map_or((0, 0), |from| (from.first, from.stride));
        let numbers = [words, self.width, self.to.first, self.to.stride, x_first, x_stride, self.rows];
        let [count, width, y_first, y_stride, x_first, x_stride, last] = to_u32s(numbers)?;
        let binds: Vec<Bind<'_>> = [&self.to].into_iter().chain(&self.from).map(|p| Bind::All(p.tensor)).collect();
        gpu.launch(&Launch {
            kernel: &ELEMENTS,
            entry: self.entry(),
            constants: &[("PER", per as u32)],
            stored: &[],
            binds: &binds,
            params: bytemuck::bytes_of(&Params { count, width, y_first, y_stride, x_first, x_stride, last }),
            groups: Groups::Line(words.div_ceil(WORKGROUP)),
        })
    }
}
