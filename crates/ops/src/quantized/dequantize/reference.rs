//! The definition, in plain loops and f64; what the codes mean is shared by all operations on quantized matrices.

use crate::op::{Array, Given};
use crate::quantized::reference::{gradients, weights};

pub(super) fn forward(t: &Given<Array>) -> Vec<Array> {
    vec![weights(t)]
}

pub(super) fn gradient(t: &Given<Array>, dy: &[Array]) -> Vec<Option<Array>> {
    let [dscales, dbiases] = gradients(t, &dy[0]);
    vec![None, dscales, dbiases]
}
