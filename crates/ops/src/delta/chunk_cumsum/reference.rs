//! The definition, in plain loops and f64.

use crate::delta::chunk::CHUNK;
use crate::op::Array;

/// The sums.
pub(super) fn forward(g: &Array) -> Array {
    let (tokens, heads) = (g.shape[1], g.shape[2]);
    let mut y = g.clone();
    for i in heads..y.data.len() {
        if i / heads % tokens % CHUNK != 0 {
            y.data[i] += y.data[i - heads];
        }
    }
    y
}

/// Each step is in its own sum and in those after it.
pub(super) fn gradient(dy: &Array) -> Array {
    let (tokens, heads) = (dy.shape[1], dy.shape[2]);
    let mut dg = dy.clone();
    for i in (heads..dg.data.len()).rev() {
        if i / heads % tokens % CHUNK != 0 {
            dg.data[i - heads] += dg.data[i];
        }
    }
    dg
}
