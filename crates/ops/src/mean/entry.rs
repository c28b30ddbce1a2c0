//! The entry of `mean` in the list.

use super::{CONTRACT, mean, reference};
use crate::common::entries::{REDUCTION, as_given, over, reduced};
use crate::op::{Case, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "the mean of all elements or of rows",
    run: |t| Ok(vec![mean(&t["x"], over(t))?]),
    reference: |t| {
        let (x, shape) = reduced(t);
        vec![reference::forward(&x, shape)]
    },
    gradient: Gradient::Of(|t, dy| as_given(t, reference::gradient(&reduced(t).0, &dy[0]))),
    tolerance: Tolerance::F32_SUMS,
    // no longer, because a long row's gradient is below the normal numbers of f16
    cases: &[
        Case::new("one element", &[('R', 1), ('D', 1)]).options(&[("last", 1.0)]),
        Case::new("odd rows", &[('R', 3), ('D', 63)]).options(&[("last", 1.0)]),
        Case::new("everything", &[('R', 5), ('D', 17)]),
        Case::new("everything, in several parts", &[('R', 3), ('D', 1_101)]),
        Case::new("rows longer than a part", &[('R', 9), ('D', 1_101)]).options(&[("last", 1.0)]),
        Case::new("more than a thread's share", &[('R', 70_001), ('D', 3)]).options(&[("last", 1.0)]),
    ],
    ..REDUCTION
};
