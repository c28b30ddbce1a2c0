//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use crate::op::{Array, Given};
use crate::quantized::reference::{gradients, weights};

pub(super) fn forward(t: &Given<Array>) -> Vec<Array> {
    let (table, ids) = (weights(t), &t["ids"]);
    let width = table.width();
    let mut y = Vec::new();
    for place in 0..ids.data.len() {
        y.extend_from_slice(&table.data[ids.index(place) * width..][..width]);
    }
    vec![Array::new([&ids.shape[..], &[width]].concat(), y)]
}

pub(super) fn gradient(t: &Given<Array>, dy: &[Array]) -> Vec<Option<Array>> {
    let (table, ids) = (weights(t), &t["ids"]);
    let mut dtable = table.map(|_| 0.0);
    for (place, dy) in dy[0].rows().enumerate() {
        let at = ids.index(place) * table.width();
        dtable.data[at..][..dy.len()].iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy);
    }
    let [dscales, dbiases] = gradients(t, &dtable);
    vec![None, dscales, dbiases, None]
}
