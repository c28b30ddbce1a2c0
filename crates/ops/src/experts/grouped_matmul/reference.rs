//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use crate::op::{Array, Given};

/// The row of `x` of a choice: the token's, or its own.
fn row(t: &Given<Array>, choice: usize) -> usize {
    if t.dims['R'] == t.dims['N'] { choice / t.dims['K'] } else { choice }
}

/// `y[n, k] = x · w[experts[n, k]]ᵀ`, with `w` as `E O I`.
pub(crate) fn forward(t: &Given<Array>, w: &Array) -> Vec<Array> {
    let (x, experts, width) = (&t["x"], &t["experts"], t["x"].width());
    let outer = w.shape[1];
    let mut y = Vec::new();
    for choice in 0..experts.data.len() {
        let x = &x.data[row(t, choice) * width..][..width];
        let w = &w.data[experts.index(choice) * outer * width..][..outer * width];
        y.extend(w.chunks(width).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()));
    }
    vec![Array::new([&experts.shape[..], &[outer]].concat(), y)]
}

/// The gradients to `x` and to `w` as floats.
pub(crate) fn gradient(t: &Given<Array>, w: &Array, dy: &Array) -> [Array; 2] {
    let (x, experts, width) = (&t["x"], &t["experts"], t["x"].width());
    let (mut dx, mut dw) = (x.map(|_| 0.0), w.map(|_| 0.0));
    for (choice, dy) in dy.rows().enumerate() {
        for (o, dy) in dy.iter().enumerate() {
            let (at, of) = (row(t, choice) * width, (experts.index(choice) * w.shape[1] + o) * width);
            for i in 0..width {
                dx.data[at + i] += dy * w.data[of + i];
                dw.data[of + i] += dy * x.data[at + i];
            }
        }
    }
    [dx, dw]
}
