//! The definition and its gradient, in f64.

use crate::op::Array;

pub(super) fn value(a: f64, b: f64) -> f64 {
    a - b
}

pub(super) fn gradient(dy: &Array) -> [Array; 2] {
    [dy.clone(), dy.map(|dy| -dy)]
}
