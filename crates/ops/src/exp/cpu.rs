//! The formula over lanes.

use crate::common::map::{Unary, UnarySlope};
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::simd::math;

#[derive(Clone, Copy)]
pub(super) struct Exp;

impl Unary for Exp {
    #[inline(always)]
    fn value<S: F32s>(self, x: S) -> S {
        math::exp(x)
    }
}

impl UnarySlope for Exp {
    #[inline(always)]
    fn slope<S: F32s>(self, x: S) -> S {
        math::exp(x)
    }
}
