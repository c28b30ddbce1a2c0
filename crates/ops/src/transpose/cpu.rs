//! Tile by tile, so that neither side leaves the first-level cache between neighbours.

use crate::common::stored::by_element;
use alluvium_core::cpu::Cpu;
use alluvium_core::{Element, Result, Tensor};
use rayon::prelude::*;

/// Rows and columns of a tile: a cache line of f32 each.
const TILE: usize = 16;

/// A shape seen from the two axes: `outer, rows, middle, columns, inner`.
struct TransposeSizes {
    rows: usize,
    middle: usize,
    columns: usize,
    inner: usize,
}

pub(super) fn forward(cpu: &Cpu, x: &Tensor, low: usize, high: usize) -> Result<Tensor> {
    let shape = x.shape();
    if low == high {
        return Ok(x.detach());
    }
    let product = |axes: &[usize]| axes.iter().product();
    let sizes = TransposeSizes {
        rows: shape[low],
        middle: product(&shape[low + 1..high]),
        columns: shape[high],
        inner: product(&shape[high + 1..]),
    };
    by_element!(x.dtype(), T => {
        let mut to = cpu.buffer::<T>(shape.elements())?;
        copy(cpu, x.slice::<T>()?, &mut to, &sizes);
        cpu.wrap(to, shape.with(low, shape[high]).with(high, shape[low]))
    })
}

/// A task is `TILE` columns of `from`, which are as many rows of `to`, of one matrix of the outer axes.
fn copy<T: Element>(cpu: &Cpu, from: &[T], to: &mut [T], sizes: &TransposeSizes) {
    let &TransposeSizes { rows, middle, columns, inner } = sizes;
    let (from_row, to_row) = (middle * columns * inner, middle * rows * inner);
    let matrix = rows * from_row;
    cpu.run(|| {
        to.par_chunks_mut(matrix).zip(from.par_chunks(matrix)).for_each(|(to, from)| {
            to.par_chunks_mut(TILE * to_row).enumerate().for_each(|(tile, to)| {
                for m in 0..middle {
                    for first in (0..rows).step_by(TILE) {
                        for (column, to) in to.chunks_exact_mut(to_row).enumerate() {
                            let column = (m * columns + tile * TILE + column) * inner;
                            let to = &mut to[m * rows * inner..][..rows * inner];
                            for row in first..rows.min(first + TILE) {
                                let from = &from[row * from_row + column..][..inner];
                                to[row * inner..][..inner].copy_from_slice(from);
                            }
                        }
                    }
                }
            });
        });
    });
}
