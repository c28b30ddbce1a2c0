//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use crate::op::Array;

/// `a [R, M, K]` by `b [R, K, N]`.
pub(super) fn forward(a: &Array, b: &Array) -> Array {
    let [m, k, n] = sizes(a, b);
    let count = a.data.len() / (m * k);
    let mut shape = a.shape.clone();
    shape.pop();
    shape.push(n);
    let mut c = Array::zeros(shape);
    for r in 0..count {
        for i in 0..m {
            for l in 0..k {
                for j in 0..n {
                    c.data[(r * m + i) * n + j] += a.data[(r * m + i) * k + l] * b.data[(r * k + l) * n + j];
                }
            }
        }
    }
    c
}

pub(super) fn gradient(a: &Array, b: &Array, dc: &Array) -> [Array; 2] {
    let [m, k, n] = sizes(a, b);
    let (mut da, mut db) = (Array::zeros(a.shape.clone()), Array::zeros(b.shape.clone()));
    for r in 0..a.data.len() / (m * k) {
        for i in 0..m {
            for l in 0..k {
                for j in 0..n {
                    let dc = dc.data[(r * m + i) * n + j];
                    da.data[(r * m + i) * k + l] += dc * b.data[(r * k + l) * n + j];
                    db.data[(r * k + l) * n + j] += dc * a.data[(r * m + i) * k + l];
                }
            }
        }
    }
    [da, db]
}

fn sizes(a: &Array, b: &Array) -> [usize; 3] {
    [a.shape[a.shape.len() - 2], a.width(), b.width()]
}
