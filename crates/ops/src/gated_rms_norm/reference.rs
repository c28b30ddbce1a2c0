//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use crate::op::{Array, Given};

pub(crate) fn forward(t: &Given<Array>, eps: f64) -> Array {
    let (x, w, mut y) = (&t["x"], &t["w"], Vec::new());
    for (x, z) in x.rows().zip(t["z"].rows()) {
        let r = rstd(x, eps);
        y.extend((0..x.len()).map(|i| x[i] * r * w.data[i] * z[i] * sigmoid(z[i])));
    }
    Array::new(x.shape.clone(), y)
}

pub(super) fn gradient(t: &Given<Array>, eps: f64, dy: &Array) -> [Array; 3] {
    let (x, w) = (&t["x"], &t["w"]);
    let (mut dx, mut dz, mut dw) = (Vec::new(), Vec::new(), Array::zeros(w.shape.clone()));
    for ((x, z), dy) in x.rows().zip(t["z"].rows()).zip(dy.rows()) {
        let (r, width) = (rstd(x, eps), x.len());
        let u: Vec<f64> = (0..width).map(|i| dy[i] * z[i] * sigmoid(z[i]) * w.data[i]).collect();
        let mean = u.iter().zip(x).map(|(u, x)| u * x).sum::<f64>() / width as f64;
        for i in 0..width {
            let s = sigmoid(z[i]);
            dx.push(r * (u[i] - x[i] * r * r * mean));
            dz.push(dy[i] * x[i] * r * w.data[i] * s * (1.0 + z[i] * (1.0 - s)));
            dw.data[i] += dy[i] * z[i] * s * x[i] * r;
        }
    }
    [Array::new(x.shape.clone(), dx), Array::new(x.shape.clone(), dz), dw]
}

fn rstd(row: &[f64], eps: f64) -> f64 {
    (row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64 + eps).sqrt().recip()
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}
