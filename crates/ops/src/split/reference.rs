//! The definition: one slice after the other, in f64.

use crate::op::Array;
use crate::slice::reference::{forward as slice, gradient as slice_gradient};

pub(super) fn forward(x: &Array, sizes: &[usize], axis: usize) -> Vec<Array> {
    let mut first = 0;
    let part = |&size: &usize| {
        first += size;
        slice(x, axis, first - size..first)
    };
    sizes.iter().map(part).collect()
}

pub(super) fn gradient(x: &Array, sizes: &[usize], axis: usize, dy: &[Array]) -> Array {
    let (mut dx, mut first) = (x.map(|_| 0.0), 0);
    for (dy, size) in dy.iter().zip(sizes) {
        dx = dx.zip(&slice_gradient(x, axis, first..first + size, dy), |a, b| a + b);
        first += size;
    }
    dx
}
