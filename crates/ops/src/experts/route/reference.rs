//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use crate::op::{Array, Given};
use std::cmp::Ordering;

/// The chosen experts of a row, the likeliest first.
fn chosen(x: &[f64], top_k: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..x.len()).collect();
    // the sort is stable: of equal ones the lower number stays first; NaN comes last
    all.sort_by(|&a, &b| x[a].is_nan().cmp(&x[b].is_nan()).then(x[b].partial_cmp(&x[a]).unwrap_or(Ordering::Equal)));
    all.truncate(top_k);
    all
}

/// The softmax of a row, over all experts or over the chosen alone; the others are 0.
fn probabilities(x: &[f64], chosen: &[usize], normalize: bool) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let counts = |i: usize| !normalize || chosen.contains(&i);
    let sum: f64 = (0..x.len()).filter(|&i| counts(i)).map(|i| (x[i] - most).exp()).sum();
    (0..x.len()).map(|i| if counts(i) { (x[i] - most).exp() / sum } else { 0.0 }).collect()
}

fn options(t: &Given<Array>) -> (usize, bool) {
    (t.option("top_k").unwrap_or(1.0) as usize, t.flag("norm_topk_prob"))
}

pub(super) fn forward(t: &Given<Array>) -> Vec<Array> {
    let (top_k, normalize) = options(t);
    let (mut weights, mut experts) = (Vec::new(), Vec::new());
    for x in t["logits"].rows() {
        let chosen = chosen(x, top_k);
        let p = probabilities(x, &chosen, normalize);
        weights.extend(chosen.iter().map(|&i| p[i]));
        experts.extend(chosen.iter().map(|&i| i as f64));
    }
    let shape = [t["logits"].shape[0], top_k];
    vec![Array::new(shape, weights), Array::new(shape, experts)]
}

pub(super) fn gradient(t: &Given<Array>, dy: &[Array]) -> Vec<Option<Array>> {
    let (top_k, normalize) = options(t);
    let mut dx = t["logits"].map(|_| 0.0);
    for ((x, dx), dw) in t["logits"].rows().zip(dx.data.chunks_mut(t["logits"].width())).zip(dy[0].rows()) {
        let chosen = chosen(x, top_k);
        let p = probabilities(x, &chosen, normalize);
        let mean: f64 = chosen.iter().zip(dw).map(|(&i, dw)| p[i] * dw).sum();
        dx.iter_mut().zip(&p).for_each(|(dx, p)| *dx = -p * mean);
        chosen.iter().zip(dw).for_each(|(&i, dw)| dx[i] += p[i] * dw);
    }
    vec![Some(dx)]
}
