//! The formula over lanes.

use crate::common::map::{Unary, UnarySlope};
use alluvium_core::cpu::simd::F32s;

#[derive(Clone, Copy)]
pub(super) struct Log;

impl Unary for Log {
    #[inline(always)]
    fn value<S: F32s>(self, x: S) -> S {
        // lane by lane: no registers of an instruction set are wider than these
        let mut lanes = [0.0; 16];
        x.store(&mut lanes);
        S::load(&lanes.map(f32::ln))
    }
}

impl UnarySlope for Log {
    #[inline(always)]
    fn slope<S: F32s>(self, x: S) -> S {
        S::splat(1.0) / x
    }
}
