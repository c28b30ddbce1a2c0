//! The definition, in plain loops and f64: the product with the values that the codes stand for.

use crate::experts::grouped_matmul::reference as dense;
use crate::op::{Array, Given};
use crate::quantized::reference::{gradients, weights};

pub(super) fn forward(t: &Given<Array>) -> Vec<Array> {
    dense::forward(t, &weights(t))
}

pub(super) fn gradient(t: &Given<Array>, dy: &[Array]) -> Vec<Option<Array>> {
    let [dx, dw] = dense::gradient(t, &weights(t), &dy[0]);
    let [dscales, dbiases] = gradients(t, &dw);
    vec![Some(dx), None, dscales, dbiases, None]
}
