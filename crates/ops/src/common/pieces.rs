//! Rows copied from pieces of other tensors' rows: concatenation, splits, slices and their gradients are one copy.

use super::InlineVec;
use super::gpu::copy::{CopyPlace, RowCopy};
use super::stored::by_element;
use alluvium_core::cpu::Cpu;
use alluvium_core::gpu::Gpu;
use alluvium_core::{DType, Device, Element, Error, Result, Shape, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// The source of a part of each row of the result.
#[derive(Clone)]
pub(crate) enum Piece<'a> {
    /// These places along the axis of a tensor.
    Of(&'a Tensor, Range<usize>),
    /// This many zeros along the axis.
    Zeros(usize),
}

impl Piece<'_> {
    fn len(&self) -> usize {
        match self {
            Piece::Of(_, range) => range.len(),
            Piece::Zeros(len) => *len,
        }
    }
}

/// An axis of a shape: its length, and the elements from one place on it to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub(crate) len: usize,
    pub(crate) inner: usize,
}

impl Axis {
    /// # Errors
    /// When the shape has no such axis.
    pub(crate) fn of(op: &'static str, shape: Shape, axis: usize) -> Result<Self> {
        if axis >= shape.rank() {
            return Err(Error::value(op, format!("there is no axis {axis} in {shape}")));
        }
        Ok(Axis { len: shape[axis], inner: shape[axis + 1..].iter().product() })
    }
}

/// The pieces one after the other along `axis`; `like` gives the result's dtype and device, `shape` its other axes.
pub(crate) fn join(op: &'static str, like: &Tensor, shape: Shape, axis: usize, pieces: &[Piece]) -> Result<Tensor> {
    let shape = shape.with(axis, pieces.iter().map(Piece::len).sum());
    let inner = Axis::of(op, shape, axis)?.inner;
    match like.device() {
        Device::Cpu(cpu) => join_rows(cpu, (shape, like.dtype()), axis, inner, pieces),
        Device::Gpu(gpu) => join_on_gpu(gpu, (shape, like.dtype()), axis, inner, pieces),
    }
}

fn join_rows(cpu: &Cpu, (shape, dtype): (Shape, DType), axis: usize, inner: usize, pieces: &[Piece]) -> Result<Tensor> {
    by_element!(dtype, T => {
        let nothing = Span { from: None, first: 0, stride: 0, width: 0 };
        let mut spans: InlineVec<Span<'_, T>, 4> = InlineVec::new(pieces.len(), nothing);
        for (span, piece) in spans.iter_mut().zip(pieces) {
            *span = match piece {
                Piece::Zeros(len) => Span { width: len * inner, ..nothing },
                Piece::Of(x, range) => Span {
                    from: Some(x.slice::<T>()?),
                    first: range.start * inner,
                    stride: x.shape()[axis] * inner,
                    width: range.len() * inner,
                },
            };
        }
        let mut to = cpu.buffer::<T>(shape.elements())?;
        copy_rows(cpu, &spans, &mut to);
        cpu.wrap(to, shape)
    })
}

/// A copy for each piece.
fn join_on_gpu(
    gpu: &Gpu,
    (shape, dtype): (Shape, DType),
    axis: usize,
    inner: usize,
    pieces: &[Piece],
) -> Result<Tensor> {
    let to = gpu.empty(shape, dtype)?;
    let rows = shape[..axis].iter().product();
    let mut first = 0;
    for piece in pieces.iter().filter(|piece| piece.len() > 0) {
        let from = match piece {
            Piece::Zeros(_) => None,
            Piece::Of(tensor, range) => {
                Some(CopyPlace { tensor, first: range.start * inner, stride: tensor.shape()[axis] * inner })
            }
        };
        let width = piece.len() * inner;
        let place = CopyPlace { tensor: &to, first, stride: shape[axis] * inner };
        RowCopy { to: place, from, rows, width, repeat: 1 }.copy(gpu)?;
        first += width;
    }
    Ok(to)
}

/// `width` elements of each row of the result: from `first + row · stride` on, or zeros.
#[derive(Clone, Copy)]
struct Span<'a, T> {
    from: Option<&'a [T]>,
    first: usize,
    stride: usize,
    width: usize,
}

/// Fills `to` on all threads; a thread's share starts and ends anywhere, so that few long rows are shared, too.
fn copy_rows<T: Element>(cpu: &Cpu, spans: &[Span<T>], to: &mut [T]) {
    let row_width: usize = spans.iter().map(|span| span.width).sum();
    let grain = cpu.grain(to.len(), 1);
    cpu.run(|| {
        to.par_chunks_mut(grain).enumerate().for_each(|(share, mut to)| {
            let (mut row, mut skip) = (share * grain / row_width, share * grain % row_width);
            while !to.is_empty() {
                for span in spans {
                    if skip >= span.width {
                        skip -= span.width;
                        continue;
                    }
                    let Some(piece) = to.split_off_mut(..to.len().min(span.width - skip)) else { return };
                    match span.from {
                        Some(from) => {
                            piece.copy_from_slice(&from[span.first + row * span.stride + skip..][..piece.len()]);
                        }
                        None => piece.fill(T::zeroed()),
                    }
                    skip = 0;
                }
                row += 1;
            }
        });
    });
}
