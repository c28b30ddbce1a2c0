//! The definition, by those of the operations that it joins.

use super::AttentionHeads;
use crate::Rope;
use crate::op::{Array, Given};
use crate::rms_norm::reference as norm;
use crate::rope::reference as rope;

pub(super) fn forward(t: &Given<Array>, heads: AttentionHeads, eps: f64, turn: Rope) -> Vec<Array> {
    let AttentionHeads { queries, kv, dim, gated } = heads;
    let (x, tokens) = (&t["x"], t["x"].shape[0]);
    let each = if gated { 2 * dim } else { dim };
    let part = |first: usize, stride: usize, heads: usize| {
        let data =
            x.rows().flat_map(|row| (0..heads).flat_map(move |head| row[first + head * stride..][..dim].to_vec()));
        Array::new([1, tokens, heads, dim], data.collect::<Vec<f64>>())
    };
    let positions = Array::new([1, tokens], t["positions"].data.clone());
    let turned = |x: Array, weight: &str| {
        let x = t.get(weight).map_or(x.clone(), |weight| norm::forward(&x, weight, eps));
        rope::forward(&x, &positions, turn)
    };
    let flat = |x: Array| Array::new([tokens, x.shape[2], dim], x.data);
    let (keys, values) = (queries * each, queries * each + kv * dim);
    let mut results = vec![
        flat(turned(part(0, each, queries), "q_norm")),
        flat(turned(part(keys, dim, kv), "k_norm")),
        flat(part(values, dim, kv)),
    ];
    if gated {
        results.push(flat(part(dim, each, queries).map(|x| 1.0 / (1.0 + (-x).exp()))));
    }
    results
}
