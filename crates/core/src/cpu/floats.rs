//! Half precision is storage only: elements are widened to f32 when a kernel reads them and rounded when stored.

use super::{Buffer, Cpu};
use crate::{DType, Element, Error, Result, Shape, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

/// Elements that a thread converts at a time.
const CHUNK: usize = 1 << 15;

/// f32 elements to read: a tensor's own memory or a widened copy.
#[derive(Debug)]
pub enum Floats<'a> {
    /// The tensor is f32.
    Own(&'a [f32]),
    /// A copy of half-precision storage.
    Widened(Buffer<f32>),
}

impl std::ops::Deref for Floats<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Floats::Own(slice) => slice,
            Floats::Widened(buffer) => buffer,
        }
    }
}

pub(super) fn read<'a>(cpu: &Cpu, x: &'a Tensor) -> Result<Floats<'a>> {
    match x.dtype() {
        DType::F32 => Ok(Floats::Own(x.slice::<f32>()?)),
        DType::F16 => widen(cpu, x.slice::<f16>()?, |from, to| from.convert_to_f32_slice(to)),
        DType::BF16 => widen(cpu, x.slice::<bf16>()?, |from, to| from.convert_to_f32_slice(to)),
        other => Err(Error::value("read", format!("{other} is not a floating dtype"))),
    }
}

fn widen<'a, T: Element>(cpu: &Cpu, from: &[T], convert: impl Fn(&[T], &mut [f32]) + Sync) -> Result<Floats<'a>> {
    let mut to = cpu.buffer::<f32>(from.len())?;
    cpu.run(|| {
        to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| convert(from, to));
    });
    Ok(Floats::Widened(to))
}

pub(super) fn tensor(cpu: &Cpu, data: Buffer<f32>, shape: Shape, dtype: DType) -> Result<Tensor> {
    match dtype {
        DType::F32 => cpu.wrap(data, shape),
        DType::F16 => cpu.wrap(narrow::<f16>(cpu, &data, |from, to| to.convert_from_f32_slice(from))?, shape),
        DType::BF16 => cpu.wrap(narrow::<bf16>(cpu, &data, |from, to| to.convert_from_f32_slice(from))?, shape),
        other => Err(Error::value("tensor", format!("{other} is not a floating dtype"))),
    }
}

fn narrow<T: Element>(cpu: &Cpu, from: &[f32], convert: impl Fn(&[f32], &mut [T]) + Sync) -> Result<Buffer<T>> {
    let mut to = cpu.buffer::<T>(from.len())?;
    cpu.run(|| {
        to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| convert(from, to));
    });
    Ok(to)
}
