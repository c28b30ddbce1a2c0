//! Eight f32 in plain loops: the fallback, which compilers vectorize for the baseline.

use super::{F32s, U32s, code, quad, sealed};
use half::{bf16, f16};
use std::array::from_fn;
use std::ops::Neg;

/// Eight f32 in an array.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scalar([f32; 8]);

impl sealed::Register for Scalar {}
impl sealed::Register for ScalarBits {}

operators!(Scalar:
    Add add (|a: [f32; 8], b: [f32; 8]| from_fn(|i| a[i] + b[i])),
    Sub sub (|a: [f32; 8], b: [f32; 8]| from_fn(|i| a[i] - b[i])),
    Mul mul (|a: [f32; 8], b: [f32; 8]| from_fn(|i| a[i] * b[i])),
    Div div (|a: [f32; 8], b: [f32; 8]| from_fn(|i| a[i] / b[i])),
);
add_assign!(Scalar);

impl Neg for Scalar {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Scalar(self.0.map(|x| -x))
    }
}

impl F32s for Scalar {
    const LANES: usize = 8;
    type Bits = ScalarBits;
    type Spread = usize;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Scalar([x; 8])
    }

    #[inline(always)]
    fn load(src: &[f32]) -> Self {
        let src = &src[..8];
        Scalar(from_fn(|i| src[i]))
    }

    #[inline(always)]
    fn load_partial(src: &[f32]) -> Self {
        Scalar(from_fn(|i| src.get(i).copied().unwrap_or(0.0)))
    }

    #[inline(always)]
    unsafe fn load_bf16(src: *const bf16) -> Self {
        // SAFETY: the caller promises 8 readable elements.
        Scalar(unsafe { src.cast::<[bf16; 8]>().read_unaligned() }.map(bf16::to_f32))
    }

    #[inline(always)]
    unsafe fn load_f16(src: *const f16) -> Self {
        // SAFETY: the caller promises 8 readable elements.
        Scalar(unsafe { src.cast::<[f16; 8]>().read_unaligned() }.map(f16::to_f32))
    }

    #[inline(always)]
    fn store(self, dst: &mut [f32]) {
        dst[..8].copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn store_partial(self, dst: &mut [f32]) {
        dst.iter_mut().zip(self.0).for_each(|(d, x)| *d = x);
    }

    #[inline(always)]
    unsafe fn load_ptr(src: *const f32) -> Self {
        // SAFETY: the caller promises 8 readable elements.
        Scalar(unsafe { src.cast::<[f32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store_ptr(self, dst: *mut f32) {
        // SAFETY: the caller promises room for 8 elements.
        unsafe { dst.cast::<[f32; 8]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        // without the instruction a fused product is a slow call
        self * a + b
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Scalar(from_fn(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        Scalar(from_fn(|i| if self.0[i] < other.0[i] { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Scalar(self.0.map(f32::sqrt))
    }

    #[inline(always)]
    fn round(self) -> Self {
        Scalar(self.0.map(f32::round_ties_even))
    }

    #[inline(always)]
    fn scale_by_exp2(self, n: Self) -> Self {
        // two steps, because one power of two alone would leave the range of f32
        let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
        Scalar(from_fn(|i| {
            let n = n.0[i] as i32;
            self.0[i] * power(n >> 1) * power(n - (n >> 1))
        }))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        let s = self.0;
        ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
    }

    #[inline(always)]
    fn max_lane(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn from_i32(x: ScalarBits) -> Self {
        Scalar(x.0.map(|x| x as i32 as f32))
    }

    #[inline(always)]
    fn to_i32(self) -> ScalarBits {
        ScalarBits(self.0.map(|x| x as i32 as u32))
    }

    #[inline(always)]
    fn from_bits(x: ScalarBits) -> Self {
        Scalar(x.0.map(f32::from_bits))
    }

    #[inline(always)]
    fn gather16(table: &[f32; 16], at: ScalarBits) -> Self {
        Scalar(at.0.map(|at| table[at as usize % 16]))
    }

    #[inline(always)]
    fn spread(each: usize) -> usize {
        each
    }

    #[inline(always)]
    unsafe fn load_spread(src: *const f32, each: usize) -> Self {
        let mut lanes = [0.0; 8];
        for (i, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: the caller promises as many elements.
            *lane = unsafe { *src.add(i / each) };
        }
        Scalar(lanes)
    }
}

/// Eight u32 in an array.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScalarBits([u32; 8]);

operators!(ScalarBits:
    BitAnd bitand (|a: [u32; 8], b: [u32; 8]| from_fn(|i| a[i] & b[i])),
    BitOr bitor (|a: [u32; 8], b: [u32; 8]| from_fn(|i| a[i] | b[i])),
    BitXor bitxor (|a: [u32; 8], b: [u32; 8]| from_fn(|i| a[i] ^ b[i])),
);

impl U32s for ScalarBits {
    #[inline(always)]
    fn splat(x: u32) -> Self {
        ScalarBits([x; 8])
    }

    #[inline(always)]
    fn load_partial(src: &[u32]) -> Self {
        ScalarBits(from_fn(|i| src.get(i).copied().unwrap_or(0)))
    }

    #[inline(always)]
    unsafe fn load_ptr(src: *const u32) -> Self {
        // SAFETY: the caller promises 8 readable elements.
        ScalarBits(unsafe { src.cast::<[u32; 8]>().read_unaligned() })
    }

    #[inline(always)]
    fn shl(self, n: u32) -> Self {
        ScalarBits(self.0.map(|x| x << n))
    }

    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        ScalarBits(self.0.map(|x| x >> n))
    }

    #[inline(always)]
    fn unpack(stream: &[u32], first: usize, bits: u32) -> Self {
        ScalarBits(from_fn(|i| code(stream, first + i, bits)))
    }

    #[inline(always)]
    fn unpack4(stream: &[u32], first: usize, bits: u32) -> Self {
        ScalarBits(from_fn(|i| quad(stream, first + 4 * i, bits)))
    }

    #[inline(always)]
    fn table_lookup(self, table: &[u8; 16]) -> Self {
        ScalarBits(self.0.map(|x| u32::from_le_bytes(x.to_le_bytes().map(|byte| table[usize::from(byte & 15)]))))
    }

    #[inline(always)]
    fn dot_bytes(mut self, codes: &[Self], digits: &[Self]) -> Self {
        for (codes, digits) in codes.iter().zip(digits) {
            self = ScalarBits(from_fn(|i| {
                let pairs = codes.0[i].to_le_bytes().into_iter().zip(digits.0[i].to_le_bytes());
                let sum: i32 = pairs.map(|(code, digit)| i32::from(code) * i32::from(digit as i8)).sum();
                self.0[i].wrapping_add(sum as u32)
            }));
        }
        self
    }
}
