//! The formula over lanes.

use crate::common::map::{Binary, BinarySlopes};
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::simd::math;

#[derive(Clone, Copy)]
pub(super) struct Swiglu;

impl Binary for Swiglu {
    #[inline(always)]
    fn value<S: F32s>(self, gate: S, up: S) -> S {
        math::silu(gate) * up
    }
}

impl BinarySlopes for Swiglu {
    #[inline(always)]
    fn slopes<S: F32s>(self, gate: S, up: S) -> (S, S) {
        let (silu, slope) = math::silu_with_slope(gate);
        (up * slope, silu)
    }
}
