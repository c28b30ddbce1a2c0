//! The definition and its derivative, in f64.

pub(super) fn value(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

pub(super) fn slope(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
