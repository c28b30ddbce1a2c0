//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use crate::op::Array;

pub(super) fn forward(table: &Array, ids: &Array) -> Array {
    let width = table.width();
    let mut y = Vec::new();
    for place in 0..ids.data.len() {
        y.extend_from_slice(&table.data[ids.index(place) * width..][..width]);
    }
    let mut shape = ids.shape.clone();
    shape.push(width);
    Array::new(shape, y)
}

pub(super) fn gradient(table: &Array, ids: &Array, dy: &Array) -> Array {
    let mut dtable = Array::zeros(table.shape.clone());
    let width = table.width();
    for (place, dy) in dy.rows().enumerate() {
        for (i, dy) in dy.iter().enumerate() {
            dtable.data[ids.index(place) * width + i] += dy;
        }
    }
    dtable
}
