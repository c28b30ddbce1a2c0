//! The entry of `cast` in the list.

use super::{CONTRACT, cast, reference};
use crate::common::entries::UNARY;
use crate::op::{Cost, Gradient, Op, Tolerance};
use alluvium_core::DType;

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "the same numbers in another storage",
    // from any storage to f16: half precision is checked within one of its roundings
    run: |t| Ok(vec![cast(&t["x"], DType::F16)?]),
    reference: |t| vec![reference::forward(&t["x"])],
    gradient: Gradient::Of(|_, dy| vec![Some(reference::forward(&dy[0]))]),
    tolerance: Tolerance { relative: 1.0 / 1024.0, worst: 8.0 / 1024.0 },
    cost: |d| Cost { bytes: 6 * d['R'], flops: 0, backward_bytes: 6 * d['R'], backward_flops: 0 },
    ..UNARY
};
