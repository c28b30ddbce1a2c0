//! The definition, in plain loops and f64.

use super::HeadLayout;
use crate::delta::chunk::{CHUNK, add, dot, row, row_mut};
use crate::op::{Array, Given};

fn layout(t: &Given<Array>) -> HeadLayout {
    let (k, u) = (&t["k"].shape, &t["u"].shape);
    HeadLayout { batch: k[0], tokens: k[1], k_heads: k[2], v_heads: u[2] }
}

/// h, v_new and the final state.
pub(super) fn forward(t: &Given<Array>) -> Vec<Array> {
    let (k, w, u, g, layout) = (&t["k"], &t["w"], &t["u"], &t["g_cum"], layout(t));
    let ([width, values], chunks) = ([k.shape[3], u.shape[3]], layout.tokens.div_ceil(CHUNK));
    let size = width * values;
    let mut h = Array::zeros([layout.batch, chunks, layout.v_heads, values, width]);
    let mut last = Array::zeros([layout.batch, layout.v_heads, values, width]);
    let mut v_new = u.clone();
    for (batch, head) in (0..layout.batch).flat_map(|b| (0..layout.v_heads).map(move |g| (b, g))) {
        let at = (batch * layout.v_heads + head) * size;
        let mut s = t.get("initial_state").map_or(vec![0.0; size], |s| s.data[at..at + size].to_vec());
        for (chunk, tokens) in layout.chunks(batch).enumerate() {
            let kept = ((batch * chunks + chunk) * layout.v_heads + head) * size;
            h.data[kept..kept + size].copy_from_slice(&s);
            let before = s.clone();
            let end = row(g, tokens.end - 1, head)[0];
            s.iter_mut().for_each(|s| *s *= end.exp());
            for i in tokens {
                let written = row_mut(&mut v_new, i, head);
                let decay = (end - row(g, i, head)[0]).exp();
                for (n, x) in written.iter_mut().enumerate() {
                    *x -= dot(&before[n * width..(n + 1) * width], row(w, i, head));
                    add(&mut s[n * width..(n + 1) * width], decay * *x, row(k, i, layout.key_head(head)));
                }
            }
        }
        last.data[at..at + size].copy_from_slice(&s);
    }
    vec![h, v_new, last]
}

/// Gradients to k, w, u, g_cum and the initial state.
pub(super) fn gradient(t: &Given<Array>, dy: &[Array]) -> Vec<Option<Array>> {
    let results = forward(t);
    let (k, w, g, layout) = (&t["k"], &t["w"], &t["g_cum"], layout(t));
    let ([width, values], chunks) = ([k.shape[3], t["u"].shape[3]], layout.tokens.div_ceil(CHUNK));
    let size = width * values;
    let [mut dk, mut dw, mut du, mut dg] = ["k", "w", "u", "g_cum"].map(|name| Array::zeros(t[name].shape.clone()));
    let mut dstart = t.get("initial_state").map(|s| Array::zeros(s.shape.clone()));
    for (batch, head) in (0..layout.batch).flat_map(|b| (0..layout.v_heads).map(move |g| (b, g))) {
        let (at, key) = ((batch * layout.v_heads + head) * size, layout.key_head(head));
        let mut ds = dy[2].data[at..at + size].to_vec();
        for (chunk, tokens) in layout.chunks(batch).enumerate().rev() {
            let kept = ((batch * chunks + chunk) * layout.v_heads + head) * size;
            let h = &results[0].data[kept..kept + size];
            let end = row(g, tokens.end - 1, head)[0];
            let mut before: Vec<f64> = ds.iter().map(|d| d * end.exp()).collect();
            row_mut(&mut dg, tokens.end - 1, head)[0] += end.exp() * dot(h, &ds);
            for i in tokens.clone() {
                let decay = (end - row(g, i, head)[0]).exp();
                for n in 0..values {
                    let span = n * width..(n + 1) * width;
                    let along = decay * dot(&ds[span.clone()], row(k, i, key));
                    let (written, d) = (row(&results[1], i, head)[n], row(&dy[1], i, head)[n] + along);
                    row_mut(&mut du, i, head)[n] = d;
                    add(row_mut(&mut dw, i, head), -d, &h[span.clone()]);
                    add(row_mut(&mut dk, i, key), decay * written, &ds[span.clone()]);
                    row_mut(&mut dg, i, head)[0] -= along * written;
                    row_mut(&mut dg, tokens.end - 1, head)[0] += along * written;
                    add(&mut before[span], -d, row(w, i, head));
                }
            }
            add(&mut before, 1.0, &dy[0].data[kept..kept + size]);
            ds = before;
        }
        if let Some(dstart) = &mut dstart {
            dstart.data[at..at + size].copy_from_slice(&ds);
        }
    }
    vec![Some(dk), Some(dw), Some(du), Some(dg), dstart]
}
