//! NEON: 4 lanes. Every 64-bit Arm CPU has it.

use super::{F32s, U32s, code, quad, sealed};
use half::{bf16, f16};
use std::arch::aarch64::*;
use std::array::from_fn;
use std::ops::Neg;

/// Four f32 in a register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neon(float32x4_t);

impl sealed::Register for Neon {}
impl sealed::Register for NeonBits {}

operators!(Neon: Add add vaddq_f32, Sub sub vsubq_f32, Mul mul vmulq_f32, Div div vdivq_f32);
add_assign!(Neon);

impl Neg for Neon {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        // SAFETY: NEON is part of the aarch64 baseline.
        Neon(unsafe { vnegq_f32(self.0) })
    }
}

// SAFETY, for every block below: NEON is part of the aarch64 baseline; slices are checked for length before they are
// read or written.
#[allow(clippy::undocumented_unsafe_blocks)]
impl F32s for Neon {
    const LANES: usize = 4;
    type Bits = NeonBits;
    type Spread = usize;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Neon(unsafe { vdupq_n_f32(x) })
    }

    #[inline(always)]
    fn load(src: &[f32]) -> Self {
        Neon(unsafe { vld1q_f32(src[..4].as_ptr()) })
    }

    #[inline(always)]
    fn load_partial(src: &[f32]) -> Self {
        let whole: [f32; 4] = std::array::from_fn(|i| src.get(i).copied().unwrap_or(0.0));
        Self::load(&whole)
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const bf16) -> Self {
        Neon(unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(src.cast()))) })
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const f16) -> Self {
        Self::load(&unsafe { src.cast::<[f16; 4]>().read_unaligned() }.map(f16::to_f32))
    }

    #[inline(always)]
    fn store(self, dst: &mut [f32]) {
        unsafe { vst1q_f32(dst[..4].as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn store_partial(self, dst: &mut [f32]) {
        let mut whole = [0.0; 4];
        self.store(&mut whole);
        dst.iter_mut().zip(whole).for_each(|(d, x)| *d = x);
    }

    #[inline(always)]
    unsafe fn load_ptr(src: *const f32) -> Self {
        Neon(unsafe { vld1q_f32(src) })
    }

    #[inline(always)]
    unsafe fn store_ptr(self, dst: *mut f32) {
        unsafe { vst1q_f32(dst, self.0) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        Neon(unsafe { vfmaq_f32(b.0, self.0, a.0) })
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Neon(unsafe { vbslq_f32(vcgtq_f32(self.0, other.0), self.0, other.0) })
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Neon(unsafe { vbslq_f32(vcltq_f32(self.0, other.0), self.0, other.0) })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Neon(unsafe { vsqrtq_f32(self.0) })
    }

    #[inline(always)]
    fn round(self) -> Self {
        Neon(unsafe { vrndnq_f32(self.0) })
    }

    #[inline(always)]
    fn scale_by_exp2(self, n: Self) -> Self {
        // two steps, because one power of two alone would leave the range of f32
        unsafe {
            let n = vcvtnq_s32_f32(n.0);
            let half = vshrq_n_s32::<1>(n);
            let bias = vdupq_n_s32(127);
            let low = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(half, bias)));
            let high = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vsubq_s32(n, half), bias)));
            Neon(vmulq_f32(vmulq_f32(self.0, low), high))
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe { vaddvq_f32(self.0) }
    }

    #[inline(always)]
    fn max_lane(self) -> f32 {
        unsafe { vmaxvq_f32(self.0) }
    }
    #[inline(always)]
    fn from_i32(x: NeonBits) -> Self {
        Neon(unsafe { vcvtq_f32_s32(vreinterpretq_s32_u32(x.0)) })
    }

    #[inline(always)]
    fn to_i32(self) -> NeonBits {
        NeonBits(unsafe { vreinterpretq_u32_s32(vcvtq_s32_f32(self.0)) })
    }

    #[inline(always)]
    fn from_bits(x: NeonBits) -> Self {
        Neon(unsafe { vreinterpretq_f32_u32(x.0) })
    }

    #[inline(always)]
    fn gather16(table: &[f32; 16], at: NeonBits) -> Self {
        let mut lanes = [0; 4];
        unsafe { vst1q_u32(lanes.as_mut_ptr(), at.0) };
        Self::load(&lanes.map(|at| table[at as usize % 16]))
    }

    #[inline(always)]
    fn spread(each: usize) -> usize {
        each
    }

    #[inline(always)]
    unsafe fn load_spread(src: *const f32, each: usize) -> Self {
        let mut lanes = [0.0; 4];
        for (i, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: the caller promises as many elements.
            *lane = unsafe { *src.add(i / each) };
        }
        Self::load(&lanes)
    }
}

/// Four u32 in a register.
#[derive(Clone, Copy, Debug)]
pub(super) struct NeonBits(uint32x4_t);

operators!(NeonBits: BitAnd bitand vandq_u32, BitOr bitor vorrq_u32, BitXor bitxor veorq_u32);

// SAFETY, for every block below: as for the f32 above.
#[allow(clippy::undocumented_unsafe_blocks)]
impl U32s for NeonBits {
    #[inline(always)]
    fn splat(x: u32) -> Self {
        NeonBits(unsafe { vdupq_n_u32(x) })
    }

    #[inline(always)]
    fn load_partial(src: &[u32]) -> Self {
        let whole: [u32; 4] = from_fn(|i| src.get(i).copied().unwrap_or(0));
        NeonBits(unsafe { vld1q_u32(whole.as_ptr()) })
    }

    #[inline(always)]
    unsafe fn load_ptr(src: *const u32) -> Self {
        NeonBits(unsafe { vld1q_u32(src) })
    }

    #[inline(always)]
    fn shl(self, n: u32) -> Self {
        NeonBits(unsafe { vshlq_u32(self.0, vdupq_n_s32(n as i32)) })
    }

    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        NeonBits(unsafe { vshlq_u32(self.0, vdupq_n_s32(-(n as i32))) })
    }

    #[inline(always)]
    fn unpack(stream: &[u32], first: usize, bits: u32) -> Self {
        let lanes: [u32; 4] = from_fn(|i| code(stream, first + i, bits));
        NeonBits(unsafe { vld1q_u32(lanes.as_ptr()) })
    }

    #[inline(always)]
    fn unpack4(stream: &[u32], first: usize, bits: u32) -> Self {
        let lanes: [u32; 4] = from_fn(|i| quad(stream, first + 4 * i, bits));
        NeonBits(unsafe { vld1q_u32(lanes.as_ptr()) })
    }

    #[inline(always)]
    fn table_lookup(self, table: &[u8; 16]) -> Self {
        unsafe { NeonBits(vreinterpretq_u32_u8(vqtbl1q_u8(vld1q_u8(table.as_ptr()), vreinterpretq_u8_u32(self.0)))) }
    }

    #[inline(always)]
    fn dot_bytes(self, codes: &[Self], digits: &[Self]) -> Self {
        unsafe {
            // eight bytes of all registers, with codes of at most 127 together, never leave 16 bits: widened once
            let (mut low, mut high) = (vdupq_n_s16(0), vdupq_n_s16(0));
            for (codes, digits) in codes.iter().zip(digits) {
                let (codes, digits) = (vreinterpretq_s8_u32(codes.0), vreinterpretq_s8_u32(digits.0));
                low = vmlal_s8(low, vget_low_s8(codes), vget_low_s8(digits));
                high = vmlal_high_s8(high, codes, digits);
            }
            // neighbours are added twice: 16 products of 8 bits become 4 sums
            let sums = vpadalq_s16(vreinterpretq_s32_u32(self.0), vpaddq_s16(low, high));
            NeonBits(vreinterpretq_u32_s32(sums))
        }
    }
}
