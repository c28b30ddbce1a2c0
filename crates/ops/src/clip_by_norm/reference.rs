//! The definition, in f64.

use crate::op::Array;

pub(super) fn clip(x: &Array, norm: &Array, most: f64) -> Array {
    let factor = (most / norm.data[0]).min(1.0);
    x.map(|x| factor * x)
}
