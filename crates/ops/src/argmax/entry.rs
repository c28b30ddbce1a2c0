//! The entry of `argmax` in the list.

use super::{CONTRACT, NO_GRADIENT, argmax, reference};
use crate::common::entries::REDUCTION;
use crate::op::{Case, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "the place of the largest element of each row",
    results: &["at"],
    run: |t| Ok(vec![argmax(&t["x"])?]),
    reference: |t| vec![reference::forward(&t["x"])],
    gradient: Gradient::None(NO_GRADIENT),
    tolerance: Tolerance::EXACT,
    cases: &[
        Case::new("one element", &[('R', 1), ('D', 1)]).zeros(&["at"]),
        Case::new("odd rows", &[('R', 3), ('D', 63)]),
        Case::new("one more than a register", &[('R', 9), ('D', 17)]),
        Case::new("a vocabulary", &[('R', 2), ('D', 150_001)]),
    ],
    bench: &[Case::new("a decode's logits", &[('R', 1), ('D', 248_320)])],
    ..REDUCTION
};
