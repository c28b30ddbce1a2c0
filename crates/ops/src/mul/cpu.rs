//! The formula over lanes.

use crate::common::map::{Binary, BinarySlopes};
use alluvium_core::cpu::simd::F32s;

#[derive(Clone, Copy)]
pub(super) struct Mul;

impl Binary for Mul {
    #[inline(always)]
    fn value<S: F32s>(self, a: S, b: S) -> S {
        a * b
    }
}

impl BinarySlopes for Mul {
    #[inline(always)]
    fn slopes<S: F32s>(self, a: S, b: S) -> (S, S) {
        (b, a)
    }
}
