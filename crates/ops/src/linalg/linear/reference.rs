//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use crate::op::Array;

pub(super) fn forward(x: &Array, w: &Array) -> Array {
    let mut y = Vec::new();
    for x in x.rows() {
        y.extend(w.rows().map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()));
    }
    let mut shape = x.shape.clone();
    shape.pop();
    shape.push(w.shape[0]);
    Array::new(shape, y)
}

pub(super) fn gradient(x: &Array, w: &Array, dy: &Array) -> [Array; 2] {
    let (mut dx, mut dw) = (Array::zeros(x.shape.clone()), Array::zeros(w.shape.clone()));
    let width = x.width();
    for (row, (x, dy)) in x.rows().zip(dy.rows()).enumerate() {
        for (out, dy) in dy.iter().enumerate() {
            for (i, x) in x.iter().enumerate() {
                dx.data[row * width + i] += dy * w.data[out * width + i];
                dw.data[out * width + i] += dy * x;
            }
        }
    }
    [dx, dw]
}
