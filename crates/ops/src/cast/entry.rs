//! The entry of `cast` in the list.

use super::{CONTRACT, cast, reference};
use crate::common::entries::UNARY;
use crate::op::{Case, Cost, Given, Gradient, Op, Tolerance};
use alluvium_core::DType;

/// The storage with so many bits of fraction, f16 where a case does not say.
fn storage<T>(t: &Given<T>) -> DType {
    match t.option("fraction") {
        Some(23.0) => DType::F32,
        Some(7.0) => DType::BF16,
        _ => DType::F16,
    }
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "the same numbers in another storage",
    run: |t| Ok(vec![cast(&t["x"], storage(t))?]),
    reference: |t| vec![reference::forward(&t["x"])],
    gradient: Gradient::Of(|_, dy| vec![Some(reference::forward(&dy[0]))]),
    // what half-precision storage rounds is allowed for everywhere; nothing else may change
    tolerance: Tolerance::EXACT,
    cases: &[
        Case::new("one element to f16", &[('R', 1)]),
        Case::new("to f16", &[('R', 3 * 63)]).options(&[("fraction", 10.0)]),
        Case::new("to bf16", &[('R', 17)]).options(&[("fraction", 7.0)]),
        Case::new("to f32", &[('R', 65)]).options(&[("fraction", 23.0)]),
        Case::new("more than a thread's share", &[('R', 70_001)]).options(&[("fraction", 7.0)]),
    ],
    cost: |d| Cost { bytes: 6 * d['R'], flops: 0, backward_bytes: 6 * d['R'], backward_flops: 0 },
    ..UNARY
};
