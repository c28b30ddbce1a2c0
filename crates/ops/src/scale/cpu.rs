//! The formula over lanes.

use crate::common::map::Unary;
use alluvium_core::cpu::simd::F32s;

#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub(super) factor: f32,
}

impl Unary for Scale {
    #[inline(always)]
    fn value<S: F32s>(self, x: S) -> S {
        x * S::splat(self.factor)
    }
}
