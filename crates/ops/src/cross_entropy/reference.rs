//! The definition, in plain loops and f64, with all logits at once.

use super::Reduction;
use crate::op::Array;

/// The options in f64.
pub(crate) struct ReferenceOptions {
    pub ignore_index: Option<usize>,
    pub reduction: Reduction,
    pub z_loss: f64,
}

pub(crate) fn forward(x: &Array, w: &Array, targets: &Array, options: &ReferenceOptions) -> Array {
    let mut loss = 0.0;
    for (n, x) in x.rows().enumerate().filter(|(n, _)| options.counts(targets, *n)) {
        let z = logits(x, w);
        let lse = logsumexp(&z);
        loss += lse - z[targets.index(n)] + options.z_loss * lse * lse;
    }
    Array::new([], vec![loss * options.weight(targets)])
}

pub(crate) fn gradient(x: &Array, w: &Array, targets: &Array, options: &ReferenceOptions, dy: f64) -> [Array; 2] {
    let (mut dx, mut dw) = (Array::zeros(x.shape.clone()), Array::zeros(w.shape.clone()));
    let width = x.width();
    for (n, x) in x.rows().enumerate().filter(|(n, _)| options.counts(targets, *n)) {
        let z = logits(x, w);
        let lse = logsumexp(&z);
        for (v, w) in w.rows().enumerate() {
            let hit = if v == targets.index(n) { 1.0 } else { 0.0 };
            let p = (z[v] - lse).exp();
            let dz = dy * options.weight(targets) * (p * (1.0 + 2.0 * options.z_loss * lse) - hit);
            for i in 0..width {
                dx.data[n * width + i] += dz * w[i];
                dw.data[v * width + i] += dz * x[i];
            }
        }
    }
    [dx, dw]
}

impl ReferenceOptions {
    fn counts(&self, targets: &Array, n: usize) -> bool {
        self.ignore_index != Some(targets.index(n))
    }

    fn weight(&self, targets: &Array) -> f64 {
        let count = (0..targets.data.len()).filter(|&n| self.counts(targets, n)).count();
        match self.reduction {
            Reduction::Mean => 1.0 / count.max(1) as f64,
            Reduction::Sum => 1.0,
        }
    }
}

fn logits(x: &[f64], w: &Array) -> Vec<f64> {
    w.rows().map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn logsumexp(z: &[f64]) -> f64 {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln()
}
