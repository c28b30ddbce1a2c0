//! The definition, index by index, in f64.

use crate::op::Array;
use crate::slice::reference::forward as slice;

/// Along axis 1 of `[A, N, C]`.
pub(super) fn forward(parts: &[&Array]) -> Array {
    let (outer, inner) = (parts[0].shape[0], parts[0].shape[2]);
    let mut y = Vec::new();
    for row in 0..outer {
        for part in parts {
            let width = part.shape[1] * inner;
            y.extend_from_slice(&part.data[row * width..][..width]);
        }
    }
    Array::new([outer, parts.iter().map(|part| part.shape[1]).sum(), inner], y)
}

pub(super) fn gradient(parts: &[&Array], dy: &Array) -> Vec<Array> {
    let mut first = 0;
    let part = |part: &&Array| {
        first += part.shape[1];
        slice(dy, 1, first - part.shape[1]..first)
    };
    parts.iter().map(part).collect()
}
