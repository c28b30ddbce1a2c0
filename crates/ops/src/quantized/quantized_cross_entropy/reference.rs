//! The definition, in f64: the loss over the widened projection, which has no gradient.

use crate::cross_entropy::{entry, reference};
use crate::op::{Array, Given};
use crate::quantized::reference::weights;

pub(super) fn forward(t: &Given<Array>) -> Vec<Array> {
    vec![reference::forward(&t["x"], &weights(t), &t["targets"], &entry::options(t))]
}

pub(super) fn gradient(t: &Given<Array>, dy: &[Array]) -> Vec<Option<Array>> {
    let [dx, _] = reference::gradient(&t["x"], &weights(t), &t["targets"], &entry::options(t), dy[0].data[0]);
    vec![Some(dx), None, None, None, None]
}
