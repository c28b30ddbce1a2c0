//! The definition, in f64.

use crate::op::Array;

pub(super) fn forward(x: &Array, shape: Vec<usize>) -> Array {
    Array::new(shape, x.rows().map(|row| row[largest(row)]).collect())
}

pub(super) fn gradient(x: &Array, dy: &Array) -> Array {
    let mut dx = x.map(|_| 0.0);
    for ((dx, row), dy) in dx.data.chunks_exact_mut(x.width()).zip(x.rows()).zip(&dy.data) {
        dx[largest(row)] = *dy;
    }
    dx
}

/// The place of the largest, the first of equal ones.
pub(crate) fn largest(row: &[f64]) -> usize {
    let mut at = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[at] {
            at = i;
        }
    }
    at
}
