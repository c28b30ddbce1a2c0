//! The definition and its gradient, in f64.

pub(super) fn value(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

pub(super) fn slopes(gate: f64, up: f64) -> (f64, f64) {
    let s = 1.0 / (1.0 + (-gate).exp());
    (up * s * (1.0 + gate * (1.0 - s)), gate * s)
}
