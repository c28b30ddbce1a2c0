//! The values of the codes of each packing, lane by lane.

use alluvium_core::cpu::simd::{F32s, U32s};

/// The values of e2m1: a sign, two bits of exponent, one of mantissa.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The meaning of codes.
pub(super) trait Decode {
    /// The values of these codes, the bits above them zero.
    fn value<S: F32s>(code: S::Bits) -> S;
}

/// Codes of eight bits, of which a word holds four.
pub(super) trait Octets: Decode {
    /// Whether [`Octets::at`] leaves code `j` where it lies in the word, so that it is `2^(8·j)` times too large. The
    /// last one never is.
    const IN_PLACE: bool = false;

    /// The values of the codes `j` of these words.
    #[inline(always)]
    fn at<S: F32s>(word: S::Bits, j: u32) -> S {
        Self::value(word.shr(j * 8) & S::Bits::splat(255))
    }
}

/// Codes of fewer bits, as bytes that are integers below 64.
pub(super) trait Bytes {
    /// Registers of bytes that a register of words makes: code `i` of a lane is byte `i / REGISTERS` of register
    /// `i % REGISTERS`. Codes that cross words are taken from the stream, four a lane.
    const REGISTERS: usize;
    /// The value of a code is `UNIT · (byte - OFFSET)`, times its scale.
    const UNIT: f32 = 1.0;
    /// See [`Bytes::UNIT`].
    const OFFSET: f32 = 0.0;

    /// The bytes of the codes in `S::LANES` lanes of a row from lane `first` on; what is past its end may be anything.
    ///
    /// # Safety
    /// Where `WHOLE`, the row has all of these lanes.
    unsafe fn bytes<S: F32s, const WHOLE: bool>(row: &[u32], first: usize) -> [S::Bits; 4];
}

/// The words of a row from `first` on, zeros past its end.
///
/// # Safety
/// Where `WHOLE`, the row has a register's words from there on.
#[inline(always)]
pub(super) unsafe fn words_at<S: F32s, const WHOLE: bool>(row: &[u32], first: usize) -> S::Bits {
    if WHOLE {
        debug_assert!(row.len() >= first + S::LANES);
        // SAFETY: the caller promises these words.
        unsafe { S::Bits::load_ptr(row.as_ptr().add(first)) }
    } else {
        S::Bits::load_partial(&row[first..])
    }
}

/// The bytes of a register of words shifted down again and again, each masked.
#[inline(always)]
fn shifted<S: F32s>(words: S::Bits, bits: u32) -> [S::Bits; 4] {
    let mask = S::Bits::splat(((1 << bits) - 1) * 0x0101_0101);
    [words & mask, words.shr(bits) & mask, words.shr(2 * bits) & mask, words.shr(3 * bits) & mask]
}

/// Integers.
pub(super) struct Whole;

impl Decode for Whole {
    #[inline(always)]
    fn value<S: F32s>(code: S::Bits) -> S {
        S::from_i32(code)
    }
}

impl Octets for Whole {
    const IN_PLACE: bool = true;

    /// A mask is all it takes, because a power of two is exact: the other factor carries its inverse.
    #[inline(always)]
    fn at<S: F32s>(word: S::Bits, j: u32) -> S {
        if j == 3 { S::from_i32(word.shr(24)) } else { S::from_i32(word & S::Bits::splat(255 << (8 * j))) }
    }
}

/// Integers of `B` = 2 or 4 bits, which never cross words.
pub(super) struct Aligned<const B: u32>;

impl<const B: u32> Bytes for Aligned<B> {
    const REGISTERS: usize = 8 / B as usize;

    #[inline(always)]
    unsafe fn bytes<S: F32s, const WHOLE: bool>(row: &[u32], first: usize) -> [S::Bits; 4] {
        // SAFETY: a lane is a word.
        shifted::<S>(unsafe { words_at::<S, WHOLE>(row, first) }, B)
    }
}

/// Integers of `B` bits from the stream.
pub(super) struct Crossing<const B: u32>;

impl<const B: u32> Bytes for Crossing<B> {
    const REGISTERS: usize = 1;

    #[inline(always)]
    unsafe fn bytes<S: F32s, const WHOLE: bool>(row: &[u32], first: usize) -> [S::Bits; 4] {
        let none = S::Bits::splat(0);
        [S::Bits::unpack4(row, 4 * first, B).bytes(B), none, none, none]
    }
}

/// The 4-bit floats of MX and NV formats.
pub(super) struct E2m1;

impl Decode for E2m1 {
    #[inline(always)]
    fn value<S: F32s>(code: S::Bits) -> S {
        S::gather16(&E2M1, code)
    }
}

/// Twice the values, and 12 more, are whole and not negative.
const RAISED: [u8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (2.0 * E2M1[i] + 12.0) as u8;
        i += 1;
    }
    table
};

impl Bytes for E2m1 {
    const REGISTERS: usize = 2;
    const UNIT: f32 = 0.5;
    const OFFSET: f32 = 12.0;

    #[inline(always)]
    unsafe fn bytes<S: F32s, const WHOLE: bool>(row: &[u32], first: usize) -> [S::Bits; 4] {
        // SAFETY: a lane is a word.
        let [low, high, ..] = shifted::<S>(unsafe { words_at::<S, WHOLE>(row, first) }, 4);
        let (low, high) = (low.table_lookup(&RAISED), high.table_lookup(&RAISED));
        [low, high, low, high]
    }
}

/// The 8-bit floats of MX formats: a sign, four bits of exponent, three of mantissa.
pub(super) struct E4m3;

impl Octets for E4m3 {}

impl Decode for E4m3 {
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
