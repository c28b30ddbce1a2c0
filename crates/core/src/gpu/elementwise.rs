//! Launches that fill, convert, copy and add tensors of a GPU.

use super::{Bind, Gpu, Groups, Kernel, Launch};
use crate::{DType, Error, Result, Tensor};

/// Invocations of a workgroup.
const WG: usize = 256;

static FILL: Kernel = trusted("fill", &[include_str!("wgsl/fill.wgsl")]);
static ADD: Kernel = trusted("accumulate", &[include_str!("wgsl/add.wgsl")]);
static CONVERT: Kernel = trusted("convert", &[include_str!("wgsl/convert.wgsl")]);
static SHIFT: Kernel = trusted("realign", &[include_str!("wgsl/shift.wgsl")]);

/// A kernel of this file.
const fn trusted(name: &'static str, wgsl: &'static [&'static str]) -> Kernel {
    // SAFETY: each loop below ends at `n`, and the launches bind at least `n` quads or words.
    unsafe { Kernel::trusted(name, wgsl) }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Count {
    n: u32,
    value: u32,
}

impl Gpu {
    /// Fills memory with a word.
    pub(crate) fn fill_words(&self, x: &Tensor, value: u32) -> Result<()> {
        let words = (x.elements() * x.dtype().size()).div_ceil(4);
        for part in self.segments(words, 4) {
            let params = Count { n: part.len() as u32, value };
            self.launch(&Launch {
                kernel: &FILL,
                entry: "main",
                constants: &[],
                stored: &[],
                binds: &[Bind::Part(x, part.start * 4..part.end * 4)],
                params: bytemuck::bytes_of(&params),
                groups: Groups::Line(part.len().div_ceil(WG)),
            })?;
        }
        Ok(())
    }

    /// Cuts `units` of at most `bytes` each into runs that fit a binding and a u32 and start where a binding may. Units
    /// so long that there is no such cut stay one run, which the launch then refuses.
    pub fn segments(&self, units: usize, bytes: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let alignment = self.limits().alignment;
        let most = (self.limits().binding / bytes.max(1)).min(u32::MAX as usize);
        let most = if most >= units || most < alignment { units.max(1) } else { most / alignment * alignment };
        (0..units).step_by(most).map(move |first| first..first.saturating_add(most).min(units))
    }

    /// The elements as f32: the tensor itself, or a widened copy of half-precision storage.
    ///
    /// # Errors
    /// When it is no floating tensor, or memory is used up.
    pub fn widen(&self, x: &Tensor) -> Result<Tensor> {
        self.convert(x, DType::F32)
    }

    /// The elements rounded once to `dtype`: the tensor itself if it has that dtype.
    ///
    /// # Errors
    /// When either is no floating type, or memory is used up.
    pub fn convert(&self, x: &Tensor, dtype: DType) -> Result<Tensor> {
        if x.dtype() == dtype {
            return Ok(x.detach());
        }
        if !x.dtype().is_float() || !dtype.is_float() {
            return Err(Error::value("convert", format!("{} cannot become {dtype}", x.dtype())));
        }
        let y = self.empty(x.shape(), dtype)?;
        let (from, to) = (4 * x.dtype().size(), 4 * dtype.size());
        for part in self.segments(x.elements().div_ceil(4), from.max(to)) {
            let of = |tensor: &Tensor, quad: usize| {
                part.start * quad..(part.end * quad).min(tensor.elements() * tensor.dtype().size())
            };
            let params = Count { n: part.len() as u32, value: 0 };
            self.launch(&Launch {
                kernel: &CONVERT,
                entry: "main",
                constants: &[],
                stored: &[("X", x.dtype()), ("Y", dtype)],
                binds: &[Bind::Part(x, of(x, from)), Bind::Part(&y, of(&y, to))],
                params: bytemuck::bytes_of(&params),
                groups: Groups::Line(part.len().div_ceil(WG)),
            })?;
        }
        Ok(y)
    }

    /// A copy in new memory.
    ///
    /// # Errors
    /// When the tensor is of another handle, or memory is used up.
    pub fn copied(&self, x: &Tensor) -> Result<Tensor> {
        self.check_own("copy", x)?;
        self.aligned(x)
    }

    /// A copy, which starts where a binding may.
    pub(super) fn aligned(&self, x: &Tensor) -> Result<Tensor> {
        let len = x.bytes_len();
        let y = self.unfilled(x.shape(), x.dtype())?;
        if x.offset().is_multiple_of(4) {
            let (source, target) = (x.gpu_bytes()?, y.gpu_bytes()?);
            let len = len.next_multiple_of(4).min(source.capacity() - x.offset());
            self.engine().copy((source.buffer()?, x.offset()), (target.buffer()?, 0), len)?;
            return Ok(y);
        }
        // half-precision rows of odd length: each word is put together from two
        let first = x.offset() / self.limits().alignment * self.limits().alignment;
        let words = len.div_ceil(4);
        let params = Count { n: words as u32, value: (x.offset() - first) as u32 };
        self.launch(&Launch {
            kernel: &SHIFT,
            entry: "main",
            constants: &[],
            stored: &[],
            binds: &[Bind::Part(&x.whole_buffer(), first..x.offset() + len), Bind::All(&y)],
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(words.div_ceil(WG)),
        })?;
        Ok(y)
    }
}

/// `sum + x` of tensors of one floating dtype, in place if nothing else holds `sum`.
pub(crate) fn accumulate(gpu: &Gpu, mut sum: Tensor, x: &Tensor) -> Result<Tensor> {
    let y = if sum.is_unique() { None } else { Some(gpu.empty(sum.shape(), sum.dtype())?) };
    let quad = 4 * x.dtype().size();
    let end = x.elements() * x.dtype().size();
    for part in gpu.segments(x.elements().div_ceil(4), quad) {
        let bytes = part.start * quad..(part.end * quad).min(end);
        let params = Count { n: part.len() as u32, value: 0 };
        let bind = |tensor| Bind::Part(tensor, bytes.clone());
        let (entry, binds): (_, &[Bind<'_>]) = match &y {
            None => ("in_place", &[bind(&sum), bind(x)]),
            Some(y) => ("apart", &[bind(y), bind(&sum), bind(x)]),
        };
        gpu.launch(&Launch {
            kernel: &ADD,
            entry,
            constants: &[],
            stored: &[("X", x.dtype())],
            binds,
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(part.len().div_ceil(WG)),
        })?;
    }
    Ok(y.unwrap_or(sum))
}
