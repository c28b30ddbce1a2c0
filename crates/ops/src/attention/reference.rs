//! The definition, in plain loops and f64: every score of a query at once.

use crate::op::{Array, Given};

pub(super) fn forward(t: &Given<Array>, scale: f64) -> Array {
    let mut o = Array::zeros(t["q"].shape.clone());
    for query in Query::all(t) {
        for (s, p) in query.weights(t, scale) {
            for d in 0..query.width {
                o.data[query.at + d] += p * t["v"].data[query.key(s) + d];
            }
        }
    }
    o
}

pub(super) fn gradient(t: &Given<Array>, scale: f64, dy: &Array) -> [Array; 3] {
    let (q, k, v) = (&t["q"], &t["k"], &t["v"]);
    let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| Array::zeros(x.shape.clone()));
    for query in Query::all(t) {
        let weights = query.weights(t, scale);
        let dp = |s: usize| (0..query.width).map(|d| dy.data[query.at + d] * v.data[query.key(s) + d]).sum::<f64>();
        let mean: f64 = weights.iter().map(|&(s, p)| p * dp(s)).sum();
        for &(s, p) in &weights {
            let ds = scale * p * (dp(s) - mean);
            for d in 0..query.width {
                dv.data[query.key(s) + d] += p * dy.data[query.at + d];
                dq.data[query.at + d] += ds * k.data[query.key(s) + d];
                dk.data[query.key(s) + d] += ds * q.data[query.at + d];
            }
        }
    }
    [dq, dk, dv]
}

/// One query of one head.
struct Query {
    /// Its first element in `q`.
    at: usize,
    width: usize,
    /// The first element of its head's keys, and how far apart they are.
    keys: usize,
    stride: usize,
    /// The keys it sees.
    sees: std::ops::Range<usize>,
}

impl Query {
    fn all(t: &Given<Array>) -> Vec<Query> {
        let [batch, tokens, heads, width] = [0, 1, 2, 3].map(|axis| t["q"].shape[axis]);
        let (positions, shared) = (t["k"].shape[1], t["k"].shape[2]);
        let mut all = Vec::new();
        for at in 0..batch * tokens * heads {
            let (b, token, head) = (at / heads / tokens, at / heads % tokens, at % heads);
            let first = t.get("cu_seqlens").map_or(0, |cu| {
                (0..cu.data.len()).map(|i| cu.index(i)).filter(|&start| start <= token).max().unwrap_or(0)
            });
            all.push(Query {
                at: at * width,
                width,
                keys: (b * positions * shared + head / (heads / shared)) * width,
                stride: shared * width,
                sees: first..token + positions - tokens + 1,
            });
        }
        all
    }

    fn key(&self, s: usize) -> usize {
        self.keys + s * self.stride
    }

    /// The keys it sees and how much it takes of each.
    fn weights(&self, t: &Given<Array>, scale: f64) -> Vec<(usize, f64)> {
        let score = |s: usize| {
            let products = (0..self.width).map(|d| t["q"].data[self.at + d] * t["k"].data[self.key(s) + d]);
            scale * products.sum::<f64>()
        };
        let scores: Vec<(usize, f64)> = self.sees.clone().map(|s| (s, score(s))).collect();
        let max = scores.iter().map(|&(_, x)| x).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|&(_, x)| (x - max).exp()).sum();
        scores.into_iter().map(|(s, x)| (s, (x - max).exp() / sum)).collect()
    }
}
