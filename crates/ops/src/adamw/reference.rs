//! The definition, in f64.

use super::AdamW;
use crate::op::{Array, Given};

pub(super) fn step(t: &Given<Array>, settings: &AdamW) -> Vec<Array> {
    let AdamW { learning_rate, beta1, beta2, eps, weight_decay, step, bias_correction } = *settings;
    let [lr, beta1, beta2, eps, decay] = [learning_rate, beta1, beta2, eps, weight_decay].map(f64::from);
    let g = &t["grad"];
    let m = t["m"].zip(g, |m, g| beta1 * m + (1.0 - beta1) * g);
    let v = t["v"].zip(g, |v, g| beta2 * v + (1.0 - beta2) * g * g);
    let unbiased = |beta: f64| if bias_correction { 1.0 - beta.powf(f64::from(step)) } else { 1.0 };
    let update = m.zip(&v, |m, v| (m / unbiased(beta1)) / ((v / unbiased(beta2)).sqrt() + eps));
    let p = t["p"].zip(&update, |p, u| p - lr * decay * p - lr * u);
    vec![p, m, v]
}
