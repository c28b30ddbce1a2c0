//! Tensors in host memory: from buffers of the CPU, and to elements that its kernels read.

use super::{Storage, Tensor};
use crate::cpu::{Buffer, Cpu, Floats, add_assign, narrow, widen};
use crate::{DType, Element, Error, Result, Shape};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements that a thread widens before it adds them: they stay in its L1 cache.
const BLOCK: usize = 1 << 10;

impl Cpu {
    /// The elements of a floating tensor as f32: the tensor's own memory, or a widened copy of half-precision storage.
    ///
    /// # Errors
    /// When the dtype is no floating one, the tensor is not in host memory, or memory is used up.
    pub fn read<'a>(&self, x: &'a Tensor) -> Result<Floats<'a>> {
        match x.dtype() {
            DType::F32 => Ok(Floats::Own(x.slice::<f32>()?)),
            DType::F16 => widen(self, x.slice()?, f16::widen),
            DType::BF16 => widen(self, x.slice()?, bf16::widen),
            other => Err(Error::value("read", format!("{other} is not a floating dtype"))),
        }
    }

    /// A tensor of `dtype` from f32 results, which are rounded to half precision here, once.
    ///
    /// # Errors
    /// When the shape does not fit, the dtype is no floating one, or memory is used up.
    pub fn tensor(&self, data: Buffer<f32>, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        match dtype {
            DType::F32 => self.wrap(data, shape),
            _ => self.rounded(&data, shape, dtype),
        }
    }

    /// A tensor of half precision from f32 elements.
    fn rounded(&self, data: &[f32], shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        match dtype {
            DType::F16 => self.wrap(narrow(self, data, f16::narrow)?, shape),
            DType::BF16 => self.wrap(narrow(self, data, bf16::narrow)?, shape),
            other => Err(Error::value("tensor", format!("{other} is not a floating dtype"))),
        }
    }

    /// A tensor that owns this buffer.
    ///
    /// # Errors
    /// When the shape has another number of elements.
    pub fn wrap<T: Element>(&self, data: Buffer<T>, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into().checked()?;
        if data.len() != shape.elements() {
            return Err(Error::value("tensor", format!("{} elements do not fill {shape}", data.len())));
        }
        Ok(Tensor::new(Storage::Cpu(data.into_bytes()), shape, T::DTYPE, self.clone().into()))
    }
}

/// Elements of half precision, which are widened to f32 to be read and rounded to be stored.
trait Half: Element {
    fn widen(from: &[Self], to: &mut [f32]);
    fn narrow(from: &[f32], to: &mut [Self]);
}

impl Half for f16 {
    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    fn narrow(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }
}

impl Half for bf16 {
    fn widen(from: &[bf16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    fn narrow(from: &[f32], to: &mut [bf16]) {
        to.convert_from_f32_slice(from);
    }
}

/// The elements of a floating tensor in a floating dtype.
pub(super) fn converted(cpu: &Cpu, x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.detach());
    }
    match cpu.read(x)? {
        Floats::Widened(wide) => cpu.tensor(wide, x.shape(), dtype),
        Floats::Own(data) => cpu.rounded(data, x.shape(), dtype),
    }
}

/// `sum + x` of tensors of one floating dtype, in place if nothing else holds `sum`.
pub(super) fn accumulate(cpu: &Cpu, mut sum: Tensor, x: &Tensor) -> Result<Tensor> {
    if !sum.is_unique() {
        sum = Tensor::from_bytes(sum.bytes()?, sum.shape(), sum.dtype(), sum.device())?;
    }
    match sum.dtype() {
        DType::F16 => add_halves::<f16>(cpu, owned(&mut sum)?, x.slice()?),
        DType::BF16 => add_halves::<bf16>(cpu, owned(&mut sum)?, x.slice()?),
        _ => add_assign(cpu, owned(&mut sum)?, x.slice()?),
    }
    Ok(sum)
}

fn owned<T: Element>(sum: &mut Tensor) -> Result<&mut [T]> {
    sum.slice_mut().ok_or_else(|| Error::value("accumulate", "memory that was just made is shared"))
}

/// `sum += x` of half precision: each sum is computed in f32 and rounded once.
fn add_halves<T: Half>(cpu: &Cpu, sum: &mut [T], x: &[T]) {
    let grain = cpu.grain(sum.len(), 1);
    cpu.run(|| {
        sum.par_chunks_mut(grain).zip(x.par_chunks(grain)).for_each(|(sum, x)| {
            let (mut a, mut b) = ([0.0; BLOCK], [0.0; BLOCK]);
            for (sum, x) in sum.chunks_mut(BLOCK).zip(x.chunks(BLOCK)) {
                let (a, b) = (&mut a[..x.len()], &mut b[..x.len()]);
                T::widen(sum, a);
                T::widen(x, b);
                a.iter_mut().zip(b).for_each(|(a, b)| *a += *b);
                T::narrow(a, sum);
            }
        });
    });
}
