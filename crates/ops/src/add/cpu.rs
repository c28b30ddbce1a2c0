//! The formula over lanes.

use crate::common::map::Binary;
use alluvium_core::cpu::simd::F32s;

#[derive(Clone, Copy)]
pub(super) struct Add;

impl Binary for Add {
    #[inline(always)]
    fn value<S: F32s>(self, a: S, b: S) -> S {
        a + b
    }
}
