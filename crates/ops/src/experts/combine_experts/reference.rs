//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use crate::op::{Array, Given};

pub(super) fn forward(t: &Given<Array>) -> Vec<Array> {
    let (y, weights) = (&t["y"], &t["weights"]);
    let (tokens, choices, width) = (y.shape[0], y.shape[1], y.shape[2]);
    let mut z = Array::zeros([tokens, width]);
    for (choice, (y, w)) in y.rows().zip(&weights.data).enumerate() {
        let z = &mut z.data[choice / choices * width..][..width];
        z.iter_mut().zip(y).for_each(|(z, y)| *z += w * y);
    }
    vec![z]
}

pub(super) fn gradient(t: &Given<Array>, dz: &[Array]) -> Vec<Option<Array>> {
    let (y, weights) = (&t["y"], &t["weights"]);
    let (choices, width) = (y.shape[1], y.shape[2]);
    let (mut dy, mut dw) = (y.map(|_| 0.0), weights.map(|_| 0.0));
    for (choice, y) in y.rows().enumerate() {
        let dz = &dz[0].data[choice / choices * width..][..width];
        for (i, (y, dz)) in y.iter().zip(dz).enumerate() {
            dy.data[choice * width + i] = weights.data[choice] * dz;
            dw.data[choice] += y * dz;
        }
    }
    vec![Some(dy), Some(dw)]
}
