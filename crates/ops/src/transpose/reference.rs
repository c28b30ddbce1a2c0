//! The definition, index by index, in f64; its gradient is the same exchange.

use crate::op::Array;

pub(super) fn forward(x: &Array, axes: [usize; 2]) -> Array {
    let mut shape = x.shape.clone();
    shape.swap(axes[0], axes[1]);
    let mut y = Array::zeros(shape.clone());
    for (i, &value) in x.data.iter().enumerate() {
        let (mut rest, mut index) = (i, vec![0; shape.len()]);
        for axis in (0..shape.len()).rev() {
            index[axis] = rest % x.shape[axis];
            rest /= x.shape[axis];
        }
        index.swap(axes[0], axes[1]);
        y.data[index.iter().zip(&shape).fold(0, |at, (i, n)| at * n + i)] = value;
    }
    y
}
