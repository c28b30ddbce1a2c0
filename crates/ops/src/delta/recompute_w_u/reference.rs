//! The definition, in plain loops and f64, without rounding.

use super::HeadLayout;
use crate::delta::chunk::{add, dot, row, row_mut};
use crate::op::{Array, Given};

fn layout(t: &Given<Array>) -> HeadLayout {
    let (k, v) = (&t["k"].shape, &t["v"].shape);
    HeadLayout { batch: k[0], tokens: k[1], k_heads: k[2], v_heads: v[2] }
}

/// w and u.
pub(super) fn forward(t: &Given<Array>) -> Vec<Array> {
    let (k, v, layout) = (&t["k"], &t["v"], layout(t));
    let mut w = Array::zeros([layout.batch, layout.tokens, layout.v_heads, k.shape[3]]);
    let mut u = Array::zeros(v.shape.clone());
    for (head, tokens) in layout.each() {
        for i in tokens.clone() {
            for j in tokens.start..=i {
                let (beta, g) = (row(&t["beta"], j, head)[0], row(&t["g_cum"], j, head)[0]);
                let a = row(&t["a"], i, head)[j - tokens.start];
                add(row_mut(&mut w, i, head), a * beta * g.exp(), row(k, j, layout.key_head(head)));
                add(row_mut(&mut u, i, head), a * beta, row(v, j, head));
            }
        }
    }
    vec![w, u]
}

/// Gradients to k, v, beta, g_cum and a.
pub(super) fn gradient(t: &Given<Array>, dy: &[Array]) -> Vec<Option<Array>> {
    let (k, v, layout) = (&t["k"], &t["v"], layout(t));
    let [mut dk, mut dv, mut dbeta, mut dg, mut da] =
        ["k", "v", "beta", "g_cum", "a"].map(|name| Array::zeros(t[name].shape.clone()));
    for (head, tokens) in layout.each() {
        let key = layout.key_head(head);
        for i in tokens.clone() {
            let (dw, du) = (row(&dy[0], i, head), row(&dy[1], i, head));
            for j in tokens.start..=i {
                let (beta, decay) = (row(&t["beta"], j, head)[0], row(&t["g_cum"], j, head)[0].exp());
                let a = row(&t["a"], i, head)[j - tokens.start];
                let (with_k, with_v) = (decay * dot(dw, row(k, j, key)), dot(du, row(v, j, head)));
                row_mut(&mut da, i, head)[j - tokens.start] += beta * (with_k + with_v);
                row_mut(&mut dbeta, j, head)[0] += a * (with_k + with_v);
                row_mut(&mut dg, j, head)[0] += a * beta * with_k;
                add(row_mut(&mut dk, j, key), a * beta * decay, dw);
                add(row_mut(&mut dv, j, head), a * beta, du);
            }
        }
    }
    vec![Some(dk), Some(dv), Some(dbeta), Some(dg), Some(da)]
}
