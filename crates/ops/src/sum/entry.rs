//! The entry of `sum` in the list.

use super::{CONTRACT, reference, sum};
use crate::common::entries::{REDUCTION, as_given, over, reduced};
use crate::op::{Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "the sum of all elements or of rows",
    run: |t| Ok(vec![sum(&t["x"], over(t))?]),
    reference: |t| {
        let (x, shape) = reduced(t);
        vec![reference::forward(&x, shape)]
    },
    gradient: Gradient::Of(|t, dy| as_given(t, reference::gradient(&reduced(t).0, &dy[0]))),
    tolerance: Tolerance::F32_SUMS,
    ..REDUCTION
};
