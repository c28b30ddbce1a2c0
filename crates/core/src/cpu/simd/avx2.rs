//! AVX2 and FMA: 8 lanes.

use super::{F32s, U32s, quad, sealed};
use half::{bf16, f16};
use std::arch::x86_64::*;
use std::ops::Neg;

/// Eight f32 in a register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(__m256);

impl sealed::Register for Avx2 {}
impl sealed::Register for Bits256 {}

operators!(Avx2: Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps);
add_assign!(Avx2);

impl Neg for Avx2 {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Self::splat(-0.0) - self
    }
}

/// The lowest `n` lanes, as the sign bits that masked loads look at.
#[inline(always)]
fn head(n: usize) -> __m256i {
    const TABLE: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    let table = &TABLE[8 - n.min(8)..][..8];
    // SAFETY: eight elements are there; `dispatch` checked the instruction set.
    unsafe { _mm256_loadu_si256(table.as_ptr().cast()) }
}

// SAFETY, for every block below: only `dispatch` instantiates the type, with a detected instruction set; slices are
// checked for length before they are read or written, or a mask keeps the access inside them.
#[allow(clippy::undocumented_unsafe_blocks)]
impl F32s for Avx2 {
    const LANES: usize = 8;
    type Bits = Bits256;
    type Spread = Spread256;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Avx2(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    fn load(src: &[f32]) -> Self {
        Avx2(unsafe { _mm256_loadu_ps(src[..8].as_ptr()) })
    }

    #[inline(always)]
    fn load_partial(src: &[f32]) -> Self {
        if src.len() >= 8 {
            return Self::load(src);
        }
        Avx2(unsafe { _mm256_maskload_ps(src.as_ptr(), head(src.len())) })
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const bf16) -> Self {
        Avx2(unsafe {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(src.cast()))))
        })
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const f16) -> Self {
        Avx2(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(src.cast())) })
    }

    #[inline(always)]
    fn store(self, dst: &mut [f32]) {
        unsafe { _mm256_storeu_ps(dst[..8].as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    unsafe fn stream(self, dst: &mut [f32]) {
        let dst = dst[..8].as_mut_ptr();
        if dst.cast::<Self>().is_aligned() {
            unsafe { _mm256_stream_ps(dst, self.0) }
        } else {
            unsafe { _mm256_storeu_ps(dst, self.0) }
        }
    }

    #[inline(always)]
    fn store_partial(self, dst: &mut [f32]) {
        // masked stores are microcode on AMD
        if dst.len() >= 8 {
            return self.store(dst);
        }
        unsafe { _mm256_maskstore_ps(dst.as_mut_ptr(), head(dst.len()), self.0) }
    }

    #[inline(always)]
    unsafe fn load_ptr(src: *const f32) -> Self {
        Avx2(unsafe { _mm256_loadu_ps(src) })
    }

    #[inline(always)]
    unsafe fn store_ptr(self, dst: *mut f32) {
        unsafe { _mm256_storeu_ps(dst, self.0) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        Avx2(unsafe { _mm256_fmadd_ps(self.0, a.0, b.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Avx2(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Avx2(unsafe { _mm256_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Avx2(unsafe { _mm256_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn round(self) -> Self {
        Avx2(unsafe { _mm256_round_ps::<8>(self.0) })
    }

    #[inline(always)]
    fn scale_by_exp2(self, n: Self) -> Self {
        // two steps, because one power of two alone would leave the range of f32
        unsafe {
            let n = _mm256_cvtps_epi32(n.0);
            let half = _mm256_srai_epi32::<1>(n);
            let bias = _mm256_set1_epi32(127);
            let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
            let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias));
            Avx2(_mm256_mul_ps(_mm256_mul_ps(self.0, _mm256_castsi256_ps(low)), _mm256_castsi256_ps(high)))
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn max_lane(self) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }
    #[inline(always)]
    fn from_i32(x: Bits256) -> Self {
        Avx2(unsafe { _mm256_cvtepi32_ps(x.0) })
    }

    #[inline(always)]
    fn to_i32(self) -> Bits256 {
        Bits256(unsafe { _mm256_cvtps_epi32(self.0) })
    }

    #[inline(always)]
    fn from_bits(x: Bits256) -> Self {
        Avx2(unsafe { _mm256_castsi256_ps(x.0) })
    }

    #[inline(always)]
    fn gather16(table: &[f32; 16], at: Bits256) -> Self {
        unsafe {
            // each half of the table is read by three bits; the fourth, as a sign, chooses between them
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), at.0);
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table[8..].as_ptr()), at.0);
            Avx2(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(at.0))))
        }
    }

    #[inline(always)]
    fn spread(each: usize) -> Spread256 {
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let at = _mm256_srl_epi32(lane, _mm_cvtsi32_si128(each.trailing_zeros() as i32));
            Spread256 { at, loaded: head(8usize.div_ceil(each)) }
        }
    }

    #[inline(always)]
    unsafe fn load_spread(src: *const f32, spread: Spread256) -> Self {
        Avx2(unsafe { _mm256_permutevar8x32_ps(_mm256_maskload_ps(src, spread.loaded), spread.at) })
    }
}

/// The element that each lane takes, and the mask of the elements that are loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread256 {
    at: __m256i,
    loaded: __m256i,
}

/// Eight u32 in a register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bits256(__m256i);

operators!(Bits256: BitAnd bitand _mm256_and_si256, BitOr bitor _mm256_or_si256, BitXor bitxor _mm256_xor_si256);

/// The positions of the two bytes of each of eight codes in their packed bytes, by the codes' width.
static BYTES: [[u8; 32]; 9] = {
    let mut table = [[0x80; 32]; 9];
    let mut bits = 1;
    while bits <= 8 {
        let mut i = 0;
        while i < 8 {
            let at = i * bits / 8;
            table[bits][4 * i] = at as u8;
            if at + 1 < bits {
                table[bits][4 * i + 1] = at as u8 + 1;
            }
            i += 1;
        }
        bits += 1;
    }
    table
};

// SAFETY, for every block below: as for the f32 above.
#[allow(clippy::undocumented_unsafe_blocks)]
impl U32s for Bits256 {
    #[inline(always)]
    fn splat(x: u32) -> Self {
        Bits256(unsafe { _mm256_set1_epi32(x as i32) })
    }

    #[inline(always)]
    fn load_partial(src: &[u32]) -> Self {
        Bits256(unsafe { _mm256_maskload_epi32(src.as_ptr().cast(), head(src.len())) })
    }

    #[inline(always)]
    unsafe fn load_ptr(src: *const u32) -> Self {
        Bits256(unsafe { _mm256_loadu_si256(src.cast()) })
    }

    #[inline(always)]
    fn shl(self, n: u32) -> Self {
        Bits256(unsafe { _mm256_sllv_epi32(self.0, _mm256_set1_epi32(n as i32)) })
    }

    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        Bits256(unsafe { _mm256_srlv_epi32(self.0, _mm256_set1_epi32(n as i32)) })
    }

    #[inline(always)]
    fn unpack(stream: &[u32], first: usize, bits: u32) -> Self {
        let at = first / 8 * bits as usize;
        assert!(at + bits as usize <= 4 * stream.len() && bits <= 8);
        unsafe {
            // eight codes fill `bits` bytes: each lane shuffles in its two, then shifts and masks
            let start = stream.as_ptr().cast::<u8>().add(at);
            let bytes = if at + 8 <= 4 * stream.len() {
                start.cast::<i64>().read_unaligned()
            } else {
                let mut bytes = [0; 8];
                std::ptr::copy_nonoverlapping(start, bytes.as_mut_ptr(), bits as usize);
                i64::from_le_bytes(bytes)
            };
            let table = _mm256_loadu_si256(BYTES[bits as usize].as_ptr().cast());
            let pairs = _mm256_shuffle_epi8(_mm256_set1_epi64x(bytes), table);
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let starts = _mm256_mullo_epi32(lane, _mm256_set1_epi32(bits as i32));
            let shifted = _mm256_srlv_epi32(pairs, _mm256_and_si256(starts, _mm256_set1_epi32(7)));
            Bits256(_mm256_and_si256(shifted, _mm256_set1_epi32((1 << bits) - 1)))
        }
    }

    #[inline(always)]
    fn unpack4(stream: &[u32], first: usize, bits: u32) -> Self {
        let lanes: [u32; 8] = std::array::from_fn(|i| quad(stream, first + 4 * i, bits));
        Bits256(unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) })
    }

    #[inline(always)]
    fn table_lookup(self, table: &[u8; 16]) -> Self {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            Bits256(_mm256_shuffle_epi8(table, self.0))
        }
    }

    #[inline(always)]
    fn dot_bytes(self, codes: &[Self], digits: &[Self]) -> Self {
        unsafe {
            // two bytes of all registers, with codes of at most 127 together, never leave 16 bits: widened once
            let mut pairs = _mm256_setzero_si256();
            for (codes, digits) in codes.iter().zip(digits) {
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes.0, digits.0));
            }
            Bits256(_mm256_add_epi32(self.0, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))))
        }
    }
}
