//! The definition, in plain loops and f64.

use super::HeadLayout;
use crate::delta::chunk::{CHUNK, add, dot, row, row_mut};
use crate::op::{Array, Given};

fn layout(t: &Given<Array>) -> HeadLayout {
    let (k, beta) = (&t["k"].shape, &t["beta"].shape);
    HeadLayout { batch: k[0], tokens: k[1], k_heads: k[2], v_heads: beta[2] }
}

/// The matrices.
pub(super) fn forward(t: &Given<Array>) -> Vec<Array> {
    let (k, beta, g, layout) = (&t["k"], &t["beta"], &t["g_cum"], layout(t));
    let mut l = Array::zeros([layout.batch, layout.tokens, layout.v_heads, CHUNK]);
    for (head, tokens) in layout.each() {
        let key = layout.key_head(head);
        for i in tokens.clone() {
            for j in tokens.start..i {
                let decay = (row(g, i, head)[0] - row(g, j, head)[0]).exp();
                row_mut(&mut l, i, head)[j - tokens.start] =
                    row(beta, i, head)[0] * decay * dot(row(k, i, key), row(k, j, key));
            }
        }
    }
    vec![l]
}

/// Gradients to k, beta and g_cum.
pub(super) fn gradient(t: &Given<Array>, dy: &[Array]) -> Vec<Option<Array>> {
    let (k, beta, g, layout) = (&t["k"], &t["beta"], &t["g_cum"], layout(t));
    let zeros = |x: &Array| Array::zeros(x.shape.clone());
    let (mut dk, mut dbeta, mut dg) = (zeros(k), zeros(beta), zeros(g));
    for (head, tokens) in layout.each() {
        let key = layout.key_head(head);
        for i in tokens.clone() {
            for j in tokens.start..i {
                let decay = (row(g, i, head)[0] - row(g, j, head)[0]).exp();
                let (b, m) = (row(beta, i, head)[0], decay * row(&dy[0], i, head)[j - tokens.start]);
                let kk = dot(row(k, i, key), row(k, j, key));
                row_mut(&mut dbeta, i, head)[0] += m * kk;
                add(row_mut(&mut dk, i, key), b * m, row(k, j, key));
                add(row_mut(&mut dk, j, key), b * m, row(k, i, key));
                row_mut(&mut dg, i, head)[0] += b * m * kk;
                row_mut(&mut dg, j, head)[0] -= b * m * kk;
            }
        }
    }
    vec![Some(dk), Some(dbeta), Some(dg)]
}
