//! The formula over lanes.

use crate::common::map::{Unary, UnarySlope};
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::simd::math;

#[derive(Clone, Copy)]
pub(super) struct Softplus;

impl Unary for Softplus {
    #[inline(always)]
    fn value<S: F32s>(self, x: S) -> S {
        math::softplus(x)
    }
}

impl UnarySlope for Softplus {
    #[inline(always)]
    fn slope<S: F32s>(self, x: S) -> S {
        math::sigmoid(x)
    }
}
