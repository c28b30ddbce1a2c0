//! AVX-512: 16 lanes, and masks that make tails cheap.

use super::{F32s, U32s, sealed};
use half::{bf16, f16};
use std::arch::x86_64::*;
use std::ops::Neg;

/// Sixteen f32 in a register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(__m512);

impl sealed::Register for Avx512 {}
impl sealed::Register for Bits512 {}

operators!(Avx512: Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps);
add_assign!(Avx512);

impl Neg for Avx512 {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Self::splat(-0.0) - self
    }
}

/// The lowest `n` lanes.
#[inline(always)]
fn head(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

// SAFETY, for every block below: only `dispatch` instantiates the type, with a detected instruction set; slices are
// checked for length before they are read or written, or a mask keeps the access inside them.
#[allow(clippy::undocumented_unsafe_blocks)]
impl F32s for Avx512 {
    const LANES: usize = 16;
    type Bits = Bits512;
    type Spread = Spread512;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Avx512(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    fn load(src: &[f32]) -> Self {
        Avx512(unsafe { _mm512_loadu_ps(src[..16].as_ptr()) })
    }

    #[inline(always)]
    fn load_partial(src: &[f32]) -> Self {
        Avx512(unsafe { _mm512_maskz_loadu_ps(head(src.len()), src.as_ptr()) })
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const bf16) -> Self {
        Avx512(unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(src.cast()))))
        })
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const f16) -> Self {
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(src.cast())) })
    }

    #[inline(always)]
    fn store(self, dst: &mut [f32]) {
        unsafe { _mm512_storeu_ps(dst[..16].as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    unsafe fn stream(self, dst: &mut [f32]) {
        let dst = dst[..16].as_mut_ptr();
        if dst.cast::<Self>().is_aligned() {
            unsafe { _mm512_stream_ps(dst, self.0) }
        } else {
            unsafe { _mm512_storeu_ps(dst, self.0) }
        }
    }

    #[inline(always)]
    fn store_partial(self, dst: &mut [f32]) {
        // masked stores are microcode on AMD
        if dst.len() >= 16 {
            return self.store(dst);
        }
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
    fn recip(self) -> Self {
        // an estimate of 14 bits and one step of Newton's: a third of a division's time
        unsafe {
            let (one, y) = (_mm512_set1_ps(1.0), _mm512_rcp14_ps(self.0));
            // 0 · infinity is NaN, which `min` turns into a step that changes nothing
            let missing = _mm512_min_ps(_mm512_fnmadd_ps(self.0, y, one), one);
            Avx512(_mm512_fmadd_ps(y, missing, y))
        }
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
    fn sums(four: [Self; 4]) -> [f32; 4] {
        unsafe {
            let mut quarters = [_mm_setzero_ps(); 4];
            for (quarter, x) in quarters.iter_mut().zip(four) {
                let half = _mm256_add_ps(_mm512_castps512_ps256(x.0), _mm512_extractf32x8_ps::<1>(x.0));
                *quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            }
            let [a, b, c, d] = quarters;
            // of each register the first two lanes plus the last two, side by side with those of another
            let left = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
            let right = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
            let mut sums = [0.0; 4];
            let both = _mm_add_ps(_mm_movelh_ps(left, right), _mm_movehl_ps(right, left));
            _mm_storeu_ps(sums.as_mut_ptr(), both);
            sums
        }
    }

    #[inline(always)]
    fn max_lane(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    fn from_i32(x: Bits512) -> Self {
        Avx512(unsafe { _mm512_cvtepi32_ps(x.0) })
    }

    #[inline(always)]
    fn to_i32(self) -> Bits512 {
        Bits512(unsafe { _mm512_cvtps_epi32(self.0) })
    }

    #[inline(always)]
    fn from_bits(x: Bits512) -> Self {
        Avx512(unsafe { _mm512_castsi512_ps(x.0) })
    }

    #[inline(always)]
    fn gather16(table: &[f32; 16], at: Bits512) -> Self {
        Avx512(unsafe { _mm512_permutexvar_ps(at.0, _mm512_loadu_ps(table.as_ptr())) })
    }

    #[inline(always)]
    fn spread(each: usize) -> Spread512 {
        unsafe {
            let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let at = _mm512_srl_epi32(lane, _mm_cvtsi32_si128(each.trailing_zeros() as i32));
            Spread512 { at, loaded: head(16usize.div_ceil(each)) }
        }
    }

    #[inline(always)]
    unsafe fn load_spread(src: *const f32, spread: Spread512) -> Self {
        Avx512(unsafe { _mm512_permutexvar_ps(spread.at, _mm512_maskz_loadu_ps(spread.loaded, src)) })
    }
}

/// The element that each lane takes, and the mask of the elements that are loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread512 {
    at: __m512i,
    loaded: __mmask16,
}

/// Sixteen u32 in a register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bits512(__m512i);

operators!(Bits512: BitAnd bitand _mm512_and_si512, BitOr bitor _mm512_or_si512, BitXor bitxor _mm512_xor_si512);

/// The positions of the two bytes of each of sixteen codes in their packed bytes, by the codes' width.
static BYTES: [[u8; 64]; 9] = {
    let mut table = [[0x80; 64]; 9];
    let mut bits = 1;
    while bits <= 8 {
        let mut i = 0;
        while i < 16 {
            let at = i * bits / 8;
            table[bits][4 * i] = at as u8;
            if at + 1 < 2 * bits {
                table[bits][4 * i + 1] = at as u8 + 1;
            }
            i += 1;
        }
        bits += 1;
    }
    table
};

/// Which 16 bits of a stream go where, so that each quarter of a register begins with its sixteen codes.
static QUARTERS: [[u16; 32]; 7] = {
    let mut table = [[0; 32]; 7];
    let mut bits = 1;
    while bits <= 6 {
        let mut i = 0;
        while i < 32 {
            table[bits][i] = (i / 8 * bits + i % 8) as u16;
            i += 1;
        }
        bits += 1;
    }
    table
};

/// Which bytes of a quarter go to each lane: those that hold its four codes, which begin in the first.
static LANES: [[u8; 64]; 7] = {
    let mut table = [[0; 64]; 7];
    let mut bits = 1;
    while bits <= 6 {
        let mut i = 0;
        while i < 64 {
            table[bits][i] = (i % 16 / 4 * bits / 2 + i % 4) as u8;
            i += 1;
        }
        bits += 1;
    }
    table
};

// SAFETY, for every block below: as for the f32 above.
#[allow(clippy::undocumented_unsafe_blocks)]
impl U32s for Bits512 {
    #[inline(always)]
    fn splat(x: u32) -> Self {
        Bits512(unsafe { _mm512_set1_epi32(x as i32) })
    }

    #[inline(always)]
    fn load_partial(src: &[u32]) -> Self {
        Bits512(unsafe { _mm512_maskz_loadu_epi32(head(src.len()), src.as_ptr().cast()) })
    }

    #[inline(always)]
    unsafe fn load_ptr(src: *const u32) -> Self {
        Bits512(unsafe { _mm512_loadu_si512(src.cast()) })
    }

    #[inline(always)]
    fn shl(self, n: u32) -> Self {
        Bits512(unsafe { _mm512_sllv_epi32(self.0, _mm512_set1_epi32(n as i32)) })
    }

    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        Bits512(unsafe { _mm512_srlv_epi32(self.0, _mm512_set1_epi32(n as i32)) })
    }

    #[inline(always)]
    fn unpack(stream: &[u32], first: usize, bits: u32) -> Self {
        let (at, width) = (first / 16 * 2 * bits as usize, 2 * bits as usize);
        assert!(at + width <= 4 * stream.len() && bits <= 8);
        unsafe {
            // sixteen codes fill `2 · bits` bytes: each lane shuffles in its two, then shifts and masks
            let bytes = _mm_maskz_loadu_epi8(((1u32 << width) - 1) as u16, stream.as_ptr().cast::<i8>().add(at));
            let table = _mm512_loadu_si512(BYTES[bits as usize].as_ptr().cast());
            let pairs = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(bytes), table);
            let lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let starts = _mm512_mullo_epi32(lane, _mm512_set1_epi32(bits as i32));
            let shifted = _mm512_srlv_epi32(pairs, _mm512_and_si512(starts, _mm512_set1_epi32(7)));
            Bits512(_mm512_and_si512(shifted, _mm512_set1_epi32((1 << bits) - 1)))
        }
    }

    #[inline(always)]
    fn unpack4(stream: &[u32], first: usize, bits: u32) -> Self {
        let words = &stream[stream.len().min(first / 32 * bits as usize)..];
        // 64 codes fill `2 · bits` words
        let mask = head(words.len().min(2 * bits as usize));
        unsafe {
            let packed = _mm512_maskz_loadu_epi32(mask, words.as_ptr().cast());
            let quarters = _mm512_loadu_si512(QUARTERS[bits as usize].as_ptr().cast());
            let lanes = _mm512_loadu_si512(LANES[bits as usize].as_ptr().cast());
            let lanes = _mm512_shuffle_epi8(_mm512_permutexvar_epi16(quarters, packed), lanes);
            // where `bits` is odd, every second lane begins in the middle of a byte
            let odd = _mm512_set1_epi64(i64::from(bits & 1) << 34);
            Bits512(_mm512_srlv_epi32(lanes, odd))
        }
    }

    #[inline(always)]
    fn table_lookup(self, table: &[u8; 16]) -> Self {
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            Bits512(_mm512_shuffle_epi8(table, self.0))
        }
    }

    #[inline(always)]
    fn dot_bytes(mut self, codes: &[Self], digits: &[Self]) -> Self {
        for (codes, digits) in codes.iter().zip(digits) {
            self = Bits512(unsafe { _mm512_dpbusd_epi32(self.0, codes.0, digits.0) });
        }
        self
    }
}
