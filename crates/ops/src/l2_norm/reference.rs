//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use crate::op::Array;

pub(crate) fn forward(x: &Array, eps: f64) -> Array {
    let mut y = Vec::with_capacity(x.data.len());
    for row in x.rows() {
        let scale = scale(row, eps);
        y.extend(row.iter().map(|x| x * scale));
    }
    Array::new(x.shape.clone(), y)
}

pub(super) fn gradient(x: &Array, eps: f64, dy: &Array) -> Array {
    let mut dx = Vec::with_capacity(x.data.len());
    for (x, dy) in x.rows().zip(dy.rows()) {
        let scale = scale(x, eps);
        let dot: f64 = x.iter().zip(dy).map(|(x, dy)| x * dy).sum();
        dx.extend(x.iter().zip(dy).map(|(x, dy)| scale * (dy - x * scale * scale * dot)));
    }
    Array::new(x.shape.clone(), dx)
}

fn scale(row: &[f64], eps: f64) -> f64 {
    (row.iter().map(|x| x * x).sum::<f64>() + eps).sqrt().recip()
}
