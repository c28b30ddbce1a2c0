//! The definition, in plain loops and f64.

use super::{COEFFICIENTS, EPS};
use crate::op::Array;

pub(super) fn forward(x: &Array, steps: usize) -> Array {
    let (rows, cols) = (x.shape[0], x.shape[1]);
    if rows > cols {
        return transposed(&forward(&transposed(x), steps));
    }
    let norm = x.data.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut x = x.map(|x| x / (norm + EPS));
    let [a, b, c] = COEFFICIENTS;
    for _ in 0..steps {
        let square = times(&x, &transposed(&x));
        let inner = square.zip(&times(&square, &square), |s, ss| b * s + c * ss);
        x = x.zip(&times(&inner, &x), |x, y| a * x + y);
    }
    x
}

fn times(a: &Array, b: &Array) -> Array {
    let (m, k, n) = (a.shape[0], b.shape[0], b.shape[1]);
    let at = |i: usize| (0..k).map(|l| a.data[i / n * k + l] * b.data[l * n + i % n]).sum();
    Array::new([m, n], (0..m * n).map(at).collect())
}

fn transposed(x: &Array) -> Array {
    let (rows, cols) = (x.shape[0], x.shape[1]);
    Array::new([cols, rows], (0..rows * cols).map(|i| x.data[i % rows * cols + i / rows]).collect())
}
