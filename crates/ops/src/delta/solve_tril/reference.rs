//! The definition, in plain loops and f64.

use crate::delta::chunk::{HeadLayout, row, row_mut};
use crate::op::Array;

fn layout(l: &Array) -> HeadLayout {
    HeadLayout { batch: l.shape[0], tokens: l.shape[1], k_heads: l.shape[2], v_heads: l.shape[2] }
}

/// The inverses.
pub(super) fn forward(l: &Array) -> Array {
    let mut a = Array::zeros(l.shape.clone());
    for (head, tokens) in layout(l).each() {
        for i in 0..tokens.len() {
            for j in 0..i {
                let at = |a: &Array, m: usize| row(a, tokens.start + m, head)[j];
                let below = &row(l, tokens.start + i, head)[..i];
                let sum: f64 = (j..i).map(|m| below[m] * at(&a, m)).sum();
                row_mut(&mut a, tokens.start + i, head)[j] = -sum;
            }
            row_mut(&mut a, tokens.start + i, head)[i] = 1.0;
        }
    }
    a
}

/// `dL_ij = −Σ_{m ≥ i} Σ_{n ≤ j} A_mi dA_mn A_jn` for i > j.
pub(super) fn gradient(l: &Array, dy: &Array) -> Array {
    let a = forward(l);
    let mut dl = Array::zeros(l.shape.clone());
    for (head, tokens) in layout(l).each() {
        let (len, start) = (tokens.len(), tokens.start);
        for m in 0..len {
            for j in 0..m {
                let half: f64 = (0..=j).map(|n| row(dy, start + m, head)[n] * row(&a, start + j, head)[n]).sum();
                for i in j + 1..=m {
                    row_mut(&mut dl, start + i, head)[j] -= row(&a, start + m, head)[i] * half;
                }
            }
        }
    }
    dl
}
