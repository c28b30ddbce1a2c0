//! The definition, in plain loops and f64.

use super::HeadLayout;
use crate::delta::chunk::{CHUNK, add, dot, row, row_mut};
use crate::op::{Array, Given};
use std::ops::Range;

fn layout(t: &Given<Array>) -> HeadLayout {
    let (k, v) = (&t["k"].shape, &t["v_new"].shape);
    HeadLayout { batch: k[0], tokens: k[1], k_heads: k[2], v_heads: v[2] }
}

/// Where the state of a chunk and head lies in `h`.
fn state(t: &Given<Array>, layout: HeadLayout, tokens: &Range<usize>, head: usize) -> Range<usize> {
    let [chunks, v, k] = [t["h"].shape[1], t["h"].shape[3], t["h"].shape[4]];
    let (batch, chunk) = (tokens.start / layout.tokens, tokens.start % layout.tokens / CHUNK);
    let first = ((batch * chunks + chunk) * layout.v_heads + head) * v * k;
    first..first + v * k
}

/// The outputs.
pub(super) fn forward(t: &Given<Array>, scale: f64) -> Vec<Array> {
    let (q, k, v, g, layout) = (&t["q"], &t["k"], &t["v_new"], &t["g_cum"], layout(t));
    let mut o = Array::zeros(v.shape.clone());
    for (head, tokens) in layout.each() {
        let (key, h) = (layout.key_head(head), &t["h"].data[state(t, layout, &tokens, head)]);
        for i in tokens.clone() {
            let (q, g_i) = (row(q, i, key), row(g, i, head)[0]);
            let out = row_mut(&mut o, i, head);
            for (o, h) in out.iter_mut().zip(h.chunks_exact(q.len())) {
                *o = scale * g_i.exp() * dot(h, q);
            }
            for j in tokens.start..=i {
                add(out, scale * (g_i - row(g, j, head)[0]).exp() * dot(q, row(k, j, key)), row(v, j, head));
            }
        }
    }
    vec![o]
}

/// Gradients to q, k, v_new, h and g_cum.
pub(super) fn gradient(t: &Given<Array>, scale: f64, dy: &[Array]) -> Vec<Option<Array>> {
    let (q, k, v, g, layout) = (&t["q"], &t["k"], &t["v_new"], &t["g_cum"], layout(t));
    let [mut dq, mut dk, mut dv, mut dh, mut dg] =
        ["q", "k", "v_new", "h", "g_cum"].map(|name| Array::zeros(t[name].shape.clone()));
    for (head, tokens) in layout.each() {
        let (key, place) = (layout.key_head(head), state(t, layout, &tokens, head));
        let width = q.shape[3];
        for i in tokens.clone() {
            let (q_i, g_i, d_o) = (row(q, i, key), row(g, i, head)[0], row(&dy[0], i, head));
            for (n, d) in d_o.iter().enumerate() {
                let span = place.start + n * width..place.start + (n + 1) * width;
                let (h, factor) = (&t["h"].data[span.clone()], scale * g_i.exp() * d);
                add(row_mut(&mut dq, i, key), factor, h);
                add(&mut dh.data[span], factor, q_i);
                row_mut(&mut dg, i, head)[0] += factor * dot(h, q_i);
            }
            for j in tokens.start..=i {
                let decay = scale * (g_i - row(g, j, head)[0]).exp();
                let (k_j, along) = (row(k, j, key), dot(d_o, row(v, j, head)));
                let p = decay * dot(q_i, k_j);
                add(row_mut(&mut dq, i, key), decay * along, k_j);
                add(row_mut(&mut dk, j, key), decay * along, q_i);
                add(row_mut(&mut dv, j, head), p, d_o);
                row_mut(&mut dg, i, head)[0] += p * along;
                row_mut(&mut dg, j, head)[0] -= p * along;
            }
        }
    }
    vec![Some(dq), Some(dk), Some(dv), Some(dh), Some(dg)]
}
