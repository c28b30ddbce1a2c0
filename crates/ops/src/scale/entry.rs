//! The entry of `scale` in the list.

use super::{CONTRACT, reference, scale};
use crate::common::entries::UNARY;
use crate::op::{Cost, Gradient, Op};

const FACTOR: f32 = -1.7;

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "x times a number",
    run: |t| Ok(vec![scale(&t["x"], FACTOR)?]),
    reference: |t| vec![t["x"].map(|x| reference::value(x, f64::from(FACTOR)))],
    gradient: Gradient::Of(|_, dy| vec![Some(dy[0].map(|dy| reference::value(dy, f64::from(FACTOR))))]),
    cost: |d| Cost { bytes: 8 * d['R'], flops: d['R'], backward_bytes: 8 * d['R'], backward_flops: d['R'] },
    ..UNARY
};
