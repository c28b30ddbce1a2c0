//! Tensors in host memory: from buffers of the CPU, and to elements that its kernels read.

use super::{Storage, Tensor};
use crate::cpu::{Buffer, Cpu, Floats, add_assign, narrow, widen};
use crate::{DType, Element, Error, Result, Shape};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

impl Cpu {
    /// The elements of a floating tensor as f32: the tensor's own memory, or a widened copy of half-precision storage.
    ///
    /// # Errors
    /// When the dtype is no floating one, the tensor is not in host memory, or memory is used up.
    pub fn read<'a>(&self, x: &'a Tensor) -> Result<Floats<'a>> {
        match x.dtype() {
            DType::F32 => Ok(Floats::Own(x.slice::<f32>()?)),
            DType::F16 => widen(self, x.slice::<f16>()?, |from, to| from.convert_to_f32_slice(to)),
            DType::BF16 => widen(self, x.slice::<bf16>()?, |from, to| from.convert_to_f32_slice(to)),
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
            DType::F16 => self.wrap(narrow::<f16>(self, &data, |from, to| to.convert_from_f32_slice(from))?, shape),
            DType::BF16 => self.wrap(narrow::<bf16>(self, &data, |from, to| to.convert_from_f32_slice(from))?, shape),
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

/// `sum + x` of tensors of one floating dtype, in place if nothing else holds `sum`.
pub(super) fn accumulate(cpu: &Cpu, mut sum: Tensor, x: &Tensor) -> Result<Tensor> {
    let add = cpu.read(x)?;
    if sum.slice_mut::<f32>().map(|sum| add_assign(cpu, sum, &add)).is_some() {
        return Ok(sum);
    }
    let mut out = cpu.buffer::<f32>(x.elements())?;
    out.copy_from_slice(&cpu.read(&sum)?);
    add_assign(cpu, &mut out, &add);
    cpu.tensor(out, sum.shape(), sum.dtype())
}
