//! The definition, index by index, in f64.

use crate::op::Array;
use std::ops::Range;

pub(crate) fn forward(x: &Array, axis: usize, range: Range<usize>) -> Array {
    let (n, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
    let kept = |i: &usize| range.contains(&(i / inner % n));
    let mut shape = x.shape.clone();
    shape[axis] = range.len();
    Array::new(shape, (0..x.data.len()).filter(kept).map(|i| x.data[i]).collect())
}

pub(crate) fn gradient(x: &Array, axis: usize, range: Range<usize>, dy: &Array) -> Array {
    let (n, inner) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>());
    let mut dy = dy.data.iter();
    let take = |i: usize| if range.contains(&(i / inner % n)) { dy.next().copied().unwrap_or(f64::NAN) } else { 0.0 };
    Array::new(x.shape.clone(), (0..x.data.len()).map(take).collect())
}
