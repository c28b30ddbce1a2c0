//! The definition, in plain loops and f64.

use crate::op::{Array, Given};

fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `g` and `beta`.
pub(crate) fn forward(t: &Given<Array>) -> Vec<Array> {
    let (a, heads) = (&t["a"], t["a"].width());
    let decay = |i: usize| -t["a_log"].data[i % heads].exp() * softplus(a.data[i] + t["dt_bias"].data[i % heads]);
    vec![Array::new(a.shape.clone(), (0..a.data.len()).map(decay).collect()), t["b"].map(sigmoid)]
}

/// Gradients to a, b, a_log and dt_bias.
pub(super) fn gradient(t: &Given<Array>, dy: &[Array]) -> Vec<Option<Array>> {
    let (a, heads) = (&t["a"], t["a"].width());
    let mut da = Array::zeros(a.shape.clone());
    let (mut da_log, mut ddt_bias) = (Array::zeros([heads]), Array::zeros([heads]));
    for (i, dg) in dy[0].data.iter().enumerate() {
        let head = i % heads;
        let (rate, x) = (t["a_log"].data[head].exp(), a.data[i] + t["dt_bias"].data[head]);
        da.data[i] = -rate * sigmoid(x) * dg;
        ddt_bias.data[head] += da.data[i];
        da_log.data[head] -= rate * softplus(x) * dg;
    }
    let db = t["b"].zip(&dy[1], |b, dbeta| sigmoid(b) * sigmoid(-b) * dbeta);
    vec![Some(da), Some(db), Some(da_log), Some(ddt_bias)]
}
