//! The definition and its derivative, in f64.

pub(super) fn value(x: f64) -> f64 {
    if x > 0.0 { x } else { 0.0 }
}

pub(super) fn slope(x: f64) -> f64 {
    if x > 0.0 { 1.0 } else { 0.0 }
}
