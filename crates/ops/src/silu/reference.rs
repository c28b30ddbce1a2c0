//! The definition and its derivative, in f64.

pub(super) fn value(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub(super) fn slope(x: f64) -> f64 {
    let s = 1.0 / (1.0 + (-x).exp());
    s * (1.0 + x * (1.0 - s))
}
