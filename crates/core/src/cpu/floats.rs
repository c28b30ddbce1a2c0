//! Half precision is storage only: elements are widened to f32 when a kernel reads them and rounded when stored.

use super::{Buffer, Cpu};
use crate::{Element, Result};
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

/// A widened copy, made on all threads.
pub(crate) fn widen<'a, T: Element>(
    cpu: &Cpu,
    from: &[T],
    convert: impl Fn(&[T], &mut [f32]) + Sync,
) -> Result<Floats<'a>> {
    let mut to = cpu.buffer::<f32>(from.len())?;
    cpu.run(|| {
        to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| convert(from, to));
    });
    Ok(Floats::Widened(to))
}

/// A narrowed copy, made on all threads.
pub(crate) fn narrow<T: Element>(
    cpu: &Cpu,
    from: &[f32],
    convert: impl Fn(&[f32], &mut [T]) + Sync,
) -> Result<Buffer<T>> {
    let mut to = cpu.buffer::<T>(from.len())?;
    cpu.run(|| {
        to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| convert(from, to));
    });
    Ok(to)
}
