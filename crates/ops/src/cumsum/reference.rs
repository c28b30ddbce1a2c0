//! The definition, in f64.

use crate::op::Array;

pub(super) fn forward(x: &Array) -> Array {
    let mut y = x.clone();
    for row in y.data.chunks_exact_mut(x.width()) {
        for i in 1..row.len() {
            row[i] += row[i - 1];
        }
    }
    y
}

pub(super) fn gradient(x: &Array, dy: &Array) -> Array {
    let mut dx = dy.clone();
    for row in dx.data.chunks_exact_mut(x.width()) {
        for i in (1..row.len()).rev() {
            row[i - 1] += row[i];
        }
    }
    dx
}
