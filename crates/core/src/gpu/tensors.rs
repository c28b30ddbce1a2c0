//! Tensors of a GPU: made, filled, converted, read.

use super::{ALIGNMENT, Bind, Gpu, Groups, Kernel, Launch};
use crate::tensor::Storage;
use crate::{DType, Error, Result, Shape, Tensor};
use std::sync::{Arc, PoisonError};

/// Quads that one invocation of a plain loop takes at most, and invocations of its workgroups.
const WG: usize = 256;

static FILL: Kernel = Kernel::new("fill", &[include_str!("text/fill.wgsl")]);
static ADD: Kernel = Kernel::new("accumulate", &[include_str!("text/add.wgsl")]);
static CONVERT: Kernel = Kernel::new("convert", &[include_str!("text/convert.wgsl")]);
static SHIFT: Kernel = Kernel::new("realign", &[include_str!("text/shift.wgsl")]);

/// Words of a table that is remembered, at most, and how many tables are: a megabyte.
const LONGEST_TABLE: usize = 4096;
const TABLES: usize = 64;

/// What NaN-filled memory holds in every floating type.
const POISON: u32 = u32::MAX;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Count {
    n: u32,
    value: u32,
}

impl Gpu {
    /// A tensor to write to. What it holds before is not said.
    ///
    /// # Errors
    /// When the memory, or its limit, is used up.
    pub fn empty(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into().checked()?;
        let bytes = self.memory().take(shape.elements() * dtype.size())?;
        let tensor = self.tensor(bytes, shape, dtype);
        if self.0.poison {
            self.fill_words(&tensor, POISON)?;
        }
        Ok(tensor)
    }

    /// A tensor of zeros.
    pub fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        let shape = shape.into().checked()?;
        let bytes = self.memory().take(shape.elements() * dtype.size())?;
        self.clear(&bytes);
        Ok(self.tensor(bytes, shape, dtype))
    }

    /// An f32 tensor filled with one number.
    pub fn full(&self, shape: impl Into<Shape>, value: f32) -> Result<Tensor> {
        let shape = shape.into().checked()?;
        let tensor = self.tensor(self.memory().take(shape.elements() * 4)?, shape, DType::F32);
        self.fill_words(&tensor, value.to_bits())?;
        Ok(tensor)
    }

    /// A tensor of these bytes.
    pub(crate) fn upload(&self, data: &[u8], shape: Shape, dtype: DType) -> Result<Tensor> {
        self.sound()?;
        Ok(self.tensor(self.uploaded(data, dtype)?, shape, dtype))
    }

    fn uploaded(&self, data: &[u8], dtype: DType) -> Result<super::Bytes> {
        let mut bytes = self.memory().fill(data, |bytes| self.write(bytes, data))?;
        if dtype == DType::U32 {
            bytes.remember(bytemuck::pod_collect_to_vec(data));
        }
        Ok(bytes)
    }

    /// A small u32 table that launches after this one are likely to want again, such as a rotation's frequencies: it is
    /// sent once and remembered by what it holds. Its memory stays in use.
    ///
    /// # Errors
    /// When the memory, or its limit, is used up.
    pub fn table(&self, words: &[u32]) -> Result<Tensor> {
        self.sound()?;
        if words.len() > LONGEST_TABLE {
            return self.upload(bytemuck::cast_slice(words), [words.len()].into(), DType::U32);
        }
        let mut tables = self.0.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = match tables.get(words) {
            Some(bytes) => bytes.clone(),
            None => {
                if tables.len() >= TABLES {
                    tables.clear();
                }
                let bytes = Arc::new(self.uploaded(bytemuck::cast_slice(words), DType::U32)?);
                tables.insert(words.to_vec(), bytes.clone());
                bytes
            }
        };
        Ok(Tensor::new(Storage::Gpu(bytes), [words.len()].into(), DType::U32, self.clone().into()))
    }

    fn tensor(&self, bytes: super::Bytes, shape: Shape, dtype: DType) -> Tensor {
        Tensor::new(Storage::Gpu(Arc::new(bytes)), shape, dtype, self.clone().into())
    }

    /// The bytes of a tensor, on the processor. Waits for what was launched before.
    pub(crate) fn download(&self, x: &Tensor) -> Result<Vec<u8>> {
        let first = x.offset();
        self.fetch(x.gpu_bytes()?, first..first + x.elements() * x.dtype().size())
    }

    fn fill_words(&self, x: &Tensor, value: u32) -> Result<()> {
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

    /// Cuts `units` of at most `bytes` each into runs that fit a binding and start where one may. Units so long that no
    /// such cut exists stay one run, which the launch then refuses.
    pub fn segments(&self, units: usize, bytes: usize) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let most = self.limits().binding / bytes.max(1);
        let most = if most >= units || most < ALIGNMENT { units.max(1) } else { most / ALIGNMENT * ALIGNMENT };
        (0..units).step_by(most).map(move |first| first..(first + most).min(units))
    }

    /// The elements as f32: the tensor itself, or a widened copy of half-precision storage.
    ///
    /// # Errors
    /// When it is no floating tensor, or memory is used up.
    pub fn widen(&self, x: &Tensor) -> Result<Tensor> {
        self.convert(x, DType::F32)
    }

    /// The elements rounded once to `dtype`: the tensor itself where it is stored so.
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

    /// A copy in memory of its own.
    ///
    /// # Errors
    /// When memory is used up.
    pub fn copied(&self, x: &Tensor) -> Result<Tensor> {
        self.aligned(x)
    }

    /// A copy of a view whose place in its buffer no binding may start at.
    pub(super) fn aligned(&self, x: &Tensor) -> Result<Tensor> {
        let size = x.elements() * x.dtype().size();
        let bytes = self.memory().take(size.next_multiple_of(4))?;
        let y = self.tensor(bytes, x.shape(), x.dtype());
        if x.offset().is_multiple_of(4) {
            let source = x.gpu_bytes()?;
            let size = size.next_multiple_of(4).min(source.capacity() - x.offset());
            self.copy((x, x.offset()), (&y, 0), size)?;
            return Ok(y);
        }
        // half-precision rows of odd length: the words are put together from two
        let whole = x.whole()?;
        let params = Count { n: size.div_ceil(4) as u32, value: x.offset() as u32 };
        self.launch(&Launch {
            kernel: &SHIFT,
            entry: "main",
            constants: &[],
            stored: &[],
            binds: &[Bind::All(&whole), Bind::All(&y)],
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(size.div_ceil(4).div_ceil(WG)),
        })?;
        Ok(y)
    }
}

/// `sum + x` of tensors of one floating dtype, in place where nobody else holds `sum`.
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
