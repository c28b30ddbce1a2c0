//! What the codes of each packing mean, lane by lane.

use alluvium_core::cpu::simd::{F32s, U32s};

/// The numbers of e2m1: a sign, two bits of exponent, one of mantissa.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The meaning of codes.
pub(super) trait Decode {
    /// Bits of a code, where a word holds whole codes and a kernel takes it apart in registers; 0 where codes are taken
    /// from the stream.
    const BITS: u32 = 0;
    /// Whether [`Decode::at`] leaves code `j` where it lies in the word, so that it is `2^(BITS·j)` times too large.
    /// The last one never is.
    const IN_PLACE: bool = false;

    /// The numbers of these codes, the bits above them zero.
    fn value<S: F32s>(code: S::Bits) -> S;

    /// The numbers of the codes `j` of these words.
    #[inline(always)]
    fn at<S: F32s>(word: S::Bits, j: u32) -> S {
        Self::value(word.shr(j * Self::BITS) & S::Bits::splat((1 << Self::BITS) - 1))
    }
}

/// Whole numbers of any bits, from the stream.
pub(super) struct Whole;

impl Decode for Whole {
    #[inline(always)]
    fn value<S: F32s>(code: S::Bits) -> S {
        S::from_i32(code)
    }
}

/// Whole numbers of `B` bits, of which a word holds some.
pub(super) struct Aligned<const B: u32>;

impl<const B: u32> Decode for Aligned<B> {
    const BITS: u32 = B;
    const IN_PLACE: bool = true;

    #[inline(always)]
    fn value<S: F32s>(code: S::Bits) -> S {
        S::from_i32(code)
    }

    /// A mask is all it takes, because a power of two is exact: the other factor carries its inverse.
    #[inline(always)]
    fn at<S: F32s>(word: S::Bits, j: u32) -> S {
        if (j + 1) * B == 32 {
            return S::from_i32(word.shr(32 - B));
        }
        S::from_i32(word & S::Bits::splat(((1 << B) - 1) << (j * B)))
    }
}

/// The 4-bit floats of MX and NV formats.
pub(super) struct E2m1;

impl Decode for E2m1 {
    const BITS: u32 = 4;

    #[inline(always)]
    fn value<S: F32s>(code: S::Bits) -> S {
        S::pick(&E2M1, code)
    }

    #[inline(always)]
    fn at<S: F32s>(word: S::Bits, j: u32) -> S {
        S::pick(&E2M1, word.shr(4 * j))
    }
}

/// The 8-bit floats of MX formats: a sign, four bits of exponent, three of mantissa.
pub(super) struct E4m3;

impl Decode for E4m3 {
    const BITS: u32 = 8;

    /// The seven bits below the sign, put where an f32 has them, under an exponent that leaves the denormals: where `e`
    /// is not 0 the number is 2⁸ times that; where it is 0, 2⁹ times what is above the least. The smaller is right for
    /// every code. The one code of NaN is the one that overflows, and infinity times 0 is NaN.
    #[inline(always)]
    fn value<S: F32s>(code: S::Bits) -> S {
        let splat = S::Bits::splat;
        let raised = S::from_bits((code & splat(0x7f)).shl(20) | splat(112 << 23));
        let normal = raised * S::splat(256.0);
        let denormal = (raised - S::splat(1.0 / 32768.0)) * S::splat(512.0);
        let nan = raised * S::splat(1.1 * 2f32.powi(127)) * S::splat(0.0);
        let sign = S::from_bits((code & splat(0x80)).shl(24) | splat(1f32.to_bits()));
        sign * (normal.min(denormal) + nan)
    }
}
