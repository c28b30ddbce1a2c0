//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use crate::op::{Array, Given};
use crate::quantized::reference::{gradients, weights};

pub(crate) fn forward(t: &Given<Array>) -> Vec<Array> {
    let (x, w) = (&t["x"], weights(t));
    let mut y = Vec::new();
    for x in x.rows() {
        y.extend(w.rows().map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()));
    }
    let shape = [&x.shape[..x.shape.len() - 1], &w.shape[..1]].concat();
    vec![Array::new(shape, y)]
}

pub(super) fn gradient(t: &Given<Array>, dy: &[Array]) -> Vec<Option<Array>> {
    let (x, w) = (&t["x"], weights(t));
    let (mut dx, mut dw) = (Array::zeros(x.shape.clone()), Array::zeros(w.shape.clone()));
    let width = x.width();
    for (row, (x, dy)) in x.rows().zip(dy[0].rows()).enumerate() {
        for (out, dy) in dy.iter().enumerate() {
            for (i, x) in x.iter().enumerate() {
                dx.data[row * width + i] += dy * w.data[out * width + i];
                dw.data[out * width + i] += dy * x;
            }
        }
    }
    let [dscales, dbiases] = gradients(t, &dw);
    vec![Some(dx), None, dscales, dbiases]
}
