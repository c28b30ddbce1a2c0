//! The formula over lanes.

use crate::common::map::{Unary, UnarySlope};
use alluvium_core::cpu::simd::F32s;

#[derive(Clone, Copy)]
pub(super) struct Relu;

impl Unary for Relu {
    #[inline(always)]
    fn value<S: F32s>(self, x: S) -> S {
        S::splat(0.0).max(x)
    }
}

impl UnarySlope for Relu {
    #[inline(always)]
    fn slope<S: F32s>(self, x: S) -> S {
        // the least number above 0 times this is above 1
        S::splat(1.0).min(S::splat(0.0).max(x) * S::splat(1e38) * S::splat(1e8))
    }
}
