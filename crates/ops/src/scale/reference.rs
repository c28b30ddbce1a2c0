//! The definition, in f64; its gradient is the same function of `dy`.

pub(super) fn value(x: f64, factor: f64) -> f64 {
    factor * x
}
