//! The definition, in f64.

use crate::op::Array;

pub(super) fn forward(logits: &Array, teacher: &Array) -> Array {
    let rows = logits.rows().zip(teacher.rows());
    let total: f64 = rows.map(|(s, t)| divergence(&log_softmax(s), &log_softmax(t))).sum();
    Array::new([], vec![total / logits.rows().len() as f64])
}

pub(super) fn gradient(logits: &Array, teacher: &Array, dy: f64) -> [Array; 2] {
    let c = dy / logits.rows().len() as f64;
    let (mut d_logits, mut d_teacher) = (Vec::new(), Vec::new());
    for (s, t) in logits.rows().zip(teacher.rows()) {
        let (s, t) = (log_softmax(s), log_softmax(t));
        let kl = divergence(&s, &t);
        d_logits.extend(s.iter().zip(&t).map(|(s, t)| c * (s.exp() - t.exp())));
        d_teacher.extend(s.iter().zip(&t).map(|(s, t)| c * t.exp() * (t - s - kl)));
    }
    [Array::new(logits.shape.clone(), d_logits), Array::new(teacher.shape.clone(), d_teacher)]
}

fn divergence(s: &[f64], t: &[f64]) -> f64 {
    s.iter().zip(t).map(|(s, t)| t.exp() * (t - s)).sum()
}

fn log_softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
    row.iter().map(|x| x - lse).collect()
}
