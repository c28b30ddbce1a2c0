//! The definition and its derivative, in f64.

use std::f64::consts::PI;

pub(super) fn value(x: f64) -> f64 {
    0.5 * x * (1.0 + inner(x).tanh())
}

pub(super) fn slope(x: f64) -> f64 {
    let t = inner(x).tanh();
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x)
}

fn inner(x: f64) -> f64 {
    (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x)
}
