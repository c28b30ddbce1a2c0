//! The definition, in f64.

use crate::op::Array;

pub(super) fn forward(cache: &Array, rows: &Array, at: usize) -> Array {
    let first = at * rows.data.len() / rows.shape[0];
    let mut y = cache.clone();
    for (i, x) in rows.data.iter().enumerate() {
        y.data[first + i] = *x;
    }
    y
}
