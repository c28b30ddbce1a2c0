//! The definition, in plain loops and f64: everything is sorted and every filter looks at every token.

use super::Sampling;
use crate::op::Array;

pub(super) fn sample(logits: &Array, sampling: &Sampling, draws: &[f32]) -> Array {
    let ids = logits.rows().zip(draws).map(|(row, &draw)| choose(row, sampling, f64::from(draw)) as f64);
    Array::new([draws.len()], ids.collect())
}

fn choose(logits: &[f64], sampling: &Sampling, draw: f64) -> usize {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let likeliest = order[0];
    if sampling.temperature == 0.0 {
        return likeliest;
    }
    let relative: Vec<f64> = logits.iter().map(|x| (x - logits[likeliest]).exp()).collect();
    let total: f64 = relative.iter().sum();
    let mut kept = vec![true; logits.len()];
    let mut before = 0.0;
    for (rank, &id) in order.iter().enumerate() {
        let reached = sampling.top_p < 1.0 && before >= f64::from(sampling.top_p) * total;
        let unlikely = logits[id] - logits[likeliest] < f64::from(sampling.min_p).ln();
        let late = sampling.top_k > 0 && rank >= sampling.top_k;
        kept[id] = !(reached || unlikely || late);
        before += relative[id];
    }
    let weight = |id: usize| {
        let inv_temperature = (logits[id] - logits[likeliest]) / f64::from(sampling.temperature);
        if kept[id] { inv_temperature.exp() } else { 0.0 }
    };
    let all: f64 = (0..logits.len()).map(weight).sum();
    let mut sum = 0.0;
    for id in 0..logits.len() {
        sum += weight(id);
        if sum > draw * all {
            return id;
        }
    }
    likeliest
}
