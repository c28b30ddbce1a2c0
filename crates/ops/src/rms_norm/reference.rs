//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use crate::op::Array;

pub(crate) fn forward(x: &Array, w: &Array, eps: f64) -> Array {
    let mut y = Vec::with_capacity(x.data.len());
    for row in x.rows() {
        let r = rstd(row, eps);
        y.extend(row.iter().zip(&w.data).map(|(x, w)| x * r * w));
    }
    Array::new(x.shape.clone(), y)
}

pub(super) fn gradient(x: &Array, w: &Array, eps: f64, dy: &Array) -> [Array; 2] {
    let (mut dx, mut dw) = (Vec::with_capacity(x.data.len()), Array::zeros(w.shape.clone()));
    for (x, dy) in x.rows().zip(dy.rows()) {
        let r = rstd(x, eps);
        let u: Vec<f64> = dy.iter().zip(&w.data).map(|(dy, w)| dy * w).collect();
        let mean = u.iter().zip(x).map(|(u, x)| u * x).sum::<f64>() / x.len() as f64;
        dx.extend(u.iter().zip(x).map(|(u, x)| r * (u - x * r * r * mean)));
        for ((dw, dy), x) in dw.data.iter_mut().zip(dy).zip(x) {
            *dw += dy * x * r;
        }
    }
    [Array::new(x.shape.clone(), dx), dw]
}

fn rstd(row: &[f64], eps: f64) -> f64 {
    let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
    (mean + eps).sqrt().recip()
}
