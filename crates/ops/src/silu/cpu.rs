//! The formula over lanes.

use crate::common::map::{Unary, UnarySlope};
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::simd::math;

#[derive(Clone, Copy)]
pub(super) struct Silu;

impl Unary for Silu {
    #[inline(always)]
    fn value<S: F32s>(self, x: S) -> S {
        math::silu(x)
    }
}

impl UnarySlope for Silu {
    #[inline(always)]
    fn slope<S: F32s>(self, x: S) -> S {
        math::silu_with_slope(x).1
    }
}
