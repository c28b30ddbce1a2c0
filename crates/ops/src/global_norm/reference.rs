//! The definition, in f64.

use crate::op::Array;

pub(super) fn norm(x: &Array) -> Array {
    Array::new([], vec![x.data.iter().map(|x| x * x).sum::<f64>().sqrt()])
}
