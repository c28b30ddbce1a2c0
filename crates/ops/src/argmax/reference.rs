//! The definition, in f64.

use crate::max::reference::largest;
use crate::op::Array;

pub(super) fn forward(x: &Array) -> Array {
    let rows = x.data.len() / x.width();
    Array::new([rows], x.rows().map(|row| largest(row) as f64).collect())
}
