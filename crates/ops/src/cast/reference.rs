//! The definition, in f64: storage changes no number by more than its rounding.

use crate::op::Array;

pub(super) fn forward(x: &Array) -> Array {
    x.clone()
}
