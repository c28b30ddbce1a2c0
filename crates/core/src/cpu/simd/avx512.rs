//! AVX-512: 16 lanes, and masks that make tails cheap.

use super::F32s;
use std::arch::x86_64::*;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// Sixteen numbers in a register.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(__m512);

macro_rules! lanewise {
    ($($trait:ident $method:ident $intrinsic:ident),*) => {$(
        impl $trait for Avx512 {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: the type is used only inside `simd!`, which checked the instruction set.
                Avx512(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}
lanewise!(Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);

impl Neg for Avx512 {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Self::splat(-0.0) - self
    }
}

impl AddAssign for Avx512 {
    #[inline(always)]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// The lowest `n` lanes.
#[inline(always)]
fn head(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

// SAFETY, for every block below: the type is used only inside `simd!`, which checked the instruction set; slices are
// checked for length before they are read or written, or a mask keeps the access inside them.
#[allow(clippy::undocumented_unsafe_blocks)]
impl F32s for Avx512 {
    const LANES: usize = 16;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Avx512(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    fn load(src: &[f32]) -> Self {
        Avx512(unsafe { _mm512_loadu_ps(src[..16].as_ptr()) })
    }

    #[inline(always)]
    fn load_head(src: &[f32]) -> Self {
        Avx512(unsafe { _mm512_maskz_loadu_ps(head(src.len()), src.as_ptr()) })
    }

    #[inline(always)]
    fn store(self, dst: &mut [f32]) {
        unsafe { _mm512_storeu_ps(dst[..16].as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn store_head(self, dst: &mut [f32]) {
        unsafe { _mm512_mask_storeu_ps(dst.as_mut_ptr(), head(dst.len()), self.0) }
    }

    #[inline(always)]
    unsafe fn load_ptr(src: *const f32) -> Self {
        Avx512(unsafe { _mm512_loadu_ps(src) })
    }

    #[inline(always)]
    unsafe fn store_ptr(self, dst: *mut f32) {
        unsafe { _mm512_storeu_ps(dst, self.0) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        Avx512(unsafe { _mm512_fmadd_ps(self.0, a.0, b.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Avx512(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Avx512(unsafe { _mm512_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn round(self) -> Self {
        Avx512(unsafe { _mm512_roundscale_ps::<8>(self.0) })
    }

    #[inline(always)]
    fn scale_by_exp2(self, n: Self) -> Self {
        Avx512(unsafe { _mm512_scalef_ps(self.0, n.0) })
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    fn max_lane(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}
