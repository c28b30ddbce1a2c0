//! The formula over lanes.

use crate::common::map::{Unary, UnarySlope};
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::simd::math;

/// Beyond this the tail is 0 in f32; an infinity would meet that 0.
const BOUND: f32 = 40.0;

#[derive(Clone, Copy)]
pub(super) struct Gelu;

/// `1 − Φ(x)` for x ≥ 0.
#[inline(always)]
fn tail<S: F32s>(x: S) -> S {
    S::splat(0.5) * math::erfc_positive(x * S::splat(std::f32::consts::FRAC_1_SQRT_2))
}

impl Unary for Gelu {
    #[inline(always)]
    fn value<S: F32s>(self, x: S) -> S {
        let size = math::abs(x);
        // x·Φ(x) from the tail's share alone, so that nothing cancels where it is small
        S::splat(0.0).max(x) - S::splat(BOUND).min(size) * tail(size)
    }
}

impl UnarySlope for Gelu {
    #[inline(always)]
    fn slope<S: F32s>(self, x: S) -> S {
        let x = S::splat(BOUND).min(S::splat(-BOUND).max(x));
        let density = math::exp(x * x * S::splat(-0.5)) * S::splat(0.398_942_3);
        // 0 or 1 by the sign; where this is neither, the tail is a half and its factor 0
        let side = S::splat(1.0).min(S::splat(-1.0).max(x * S::splat(1e30) * S::splat(1e8)));
        let half = S::splat(0.5);
        side.mul_add(half - tail(math::abs(x)), half) + x * density
    }
}
