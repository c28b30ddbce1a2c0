//! The formula over lanes: `(1 + tanh(u))/2` is `σ(2u)`, which does not cancel where it is small.

use crate::common::map::{Unary, UnarySlope};
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::simd::math;

/// Beyond this σ(2u) is 0 or 1 in f32; an infinity would meet that 0.
const BOUND: f32 = 40.0;
/// 2·√(2/π)
const OUTER: f32 = 1.595_769_2;
const CUBE: f32 = 0.044715;

#[derive(Clone, Copy)]
pub(super) struct GeluApprox;

#[inline(always)]
fn near<S: F32s>(x: S) -> S {
    S::splat(BOUND).min(S::splat(-BOUND).max(x))
}

/// σ(2u)
#[inline(always)]
fn share<S: F32s>(x: S) -> S {
    let cubic = (x * x).mul_add(S::splat(CUBE), S::splat(1.0));
    math::sigmoid(S::splat(OUTER) * x * cubic)
}

impl Unary for GeluApprox {
    #[inline(always)]
    fn value<S: F32s>(self, x: S) -> S {
        S::splat(-BOUND).max(x) * share(near(x))
    }
}

impl UnarySlope for GeluApprox {
    #[inline(always)]
    fn slope<S: F32s>(self, x: S) -> S {
        let x = near(x);
        let (s, one) = (share(x), S::splat(1.0));
        let steep = S::splat(OUTER) * (x * x).mul_add(S::splat(3.0 * CUBE), one);
        s + x * s * (one - s) * steep
    }
}
