//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use super::Activation;
use crate::op::{Array, Given};

/// The inputs of each sequence, the state's rows first.
fn extended(t: &Given<Array>) -> Vec<Vec<f64>> {
    let (x, width) = (&t["x"], t["x"].width());
    let before = t["w"].width() - 1;
    let offsets: Vec<usize> = match t.get("cu_seqlens") {
        Some(cuts) => (0..cuts.data.len()).map(|i| cuts.index(i)).collect(),
        None => (0..=x.shape[0]).map(|b| b * x.shape[1]).collect(),
    };
    let sequence = |(n, ends): (usize, &[usize])| {
        let mut rows = match t.get("initial_state") {
            Some(state) => state.data[n * before * width..][..before * width].to_vec(),
            None => vec![0.0; before * width],
        };
        rows.extend_from_slice(&x.data[ends[0] * width..ends[1] * width]);
        rows
    };
    offsets.windows(2).enumerate().map(sequence).collect()
}

pub(crate) fn forward(t: &Given<Array>, activation: Activation) -> Vec<Array> {
    let (x, w, width) = (&t["x"], &t["w"], t["x"].width());
    let taps = w.width();
    let (mut y, mut states) = (Vec::new(), Vec::new());
    for rows in extended(t) {
        for z in sums(&rows, w, width) {
            y.push(if activation == Activation::Silu { z / (1.0 + (-z).exp()) } else { z });
        }
        states.extend_from_slice(&rows[rows.len() - (taps - 1) * width..]);
    }
    let y = Array::new(x.shape.clone(), y);
    if taps == 1 {
        return vec![y];
    }
    let sequences = states.len() / ((taps - 1) * width);
    vec![y, Array::new([sequences, taps - 1, width], states)]
}

fn sums(rows: &[f64], w: &Array, width: usize) -> Vec<f64> {
    let taps = w.width();
    let tokens = rows.len() / width + 1 - taps;
    let sum = |i: usize| (0..taps).map(|k| w.data[i % width * taps + k] * rows[i + k * width]).sum();
    (0..tokens * width).map(sum).collect()
}

pub(super) fn gradient(t: &Given<Array>, activation: Activation, dy: &[Array]) -> Vec<Option<Array>> {
    let (x, w, width) = (&t["x"], &t["w"], t["x"].width());
    let taps = w.width();
    let (mut dx, mut dw, mut dstate) = (Vec::new(), Array::zeros(w.shape.clone()), Vec::new());
    let mut dys = &dy[0].data[..];
    for (n, rows) in extended(t).iter().enumerate() {
        let mut drows = vec![0.0; rows.len()];
        for (i, z) in sums(rows, w, width).into_iter().enumerate() {
            let s = 1.0 / (1.0 + (-z).exp());
            let dz = dys[i] * if activation == Activation::Silu { s * (1.0 + z * (1.0 - s)) } else { 1.0 };
            for k in 0..taps {
                drows[i + k * width] += w.data[i % width * taps + k] * dz;
                dw.data[i % width * taps + k] += rows[i + k * width] * dz;
            }
        }
        let kept = (taps - 1) * width;
        if let Some(dfinal) = dy.get(1) {
            let end = drows.len() - kept;
            drows[end..].iter_mut().zip(&dfinal.data[n * kept..]).for_each(|(d, x)| *d += x);
        }
        dys = &dys[rows.len() - kept..];
        dstate.extend_from_slice(&drows[..kept]);
        dx.extend_from_slice(&drows[kept..]);
    }
    let dstate = t.get("initial_state").map(|state| Array::new(state.shape.clone(), dstate));
    vec![Some(Array::new(x.shape.clone(), dx)), Some(dw), dstate, None]
}
