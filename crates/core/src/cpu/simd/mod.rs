//! SIMD kernels: one source, compiled for each instruction set, dispatched at run time.
//!
//! A kernel is written once over [`F32s`] inside [`simd!`](crate::simd) and called with an [`Isa`]:
//!
//! ```
//! use alluvium_core::cpu::Isa;
//! use alluvium_core::cpu::simd::F32s;
//!
//! alluvium_core::simd! {
//!     /// `y = a·x`
//!     fn scale<S>(a: f32, x: &[f32], y: &mut [f32]) {
//!         let (a, whole) = (S::splat(a), x.len() - x.len() % S::LANES);
//!         for i in (0..whole).step_by(S::LANES) {
//!             (S::load(&x[i..]) * a).store(&mut y[i..]);
//!         }
//!         (S::load_partial(&x[whole..]) * a).store_partial(&mut y[whole..]);
//!     }
//! }
//!
//! let mut y = [0.0; 3];
//! scale(Isa::best(), 2.0, &[1.0, 2.0, 3.0], &mut y);
//! assert_eq!(y, [2.0, 4.0, 6.0]);
//! ```
//!
//! Safe code cannot run an instruction that the CPU lacks: the register types have no public name, and only
//! [`dispatch`] puts one in the place of `S`, by an [`Isa`] that was detected.
//!
//! ```compile_fail,E0603
//! use alluvium_core::cpu::simd::Scalar;
//! ```
//!
//! ```compile_fail,E0277
//! use alluvium_core::cpu::simd::F32s;
//! fn lanes<S: F32s>() -> usize {
//!     S::LANES
//! }
//! lanes::<f32>();
//! ```

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
use neon::Neon;
use scalar::Scalar;

use super::StoreHint;
use half::{bf16, f16};
use std::ops::{Add, AddAssign, BitAnd, BitOr, BitXor, Div, Mul, Neg, Sub};

/// An instruction set that this CPU has.
///
/// A value is proof that its instructions may run: only [`Isa::available`] makes one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(IsaKind);

/// The instruction sets with a register type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IsaKind {
    /// No SIMD beyond what the compiler makes of plain loops.
    Scalar,
    /// AVX2, FMA and F16C: 8 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ, VL, VNNI: 16 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON: 4 lanes; every 64-bit Arm has it.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The best one of this CPU.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Isa(IsaKind::Scalar))
    }

    /// All that this CPU has, the best last.
    pub fn available() -> Vec<Self> {
        let mut isas = vec![Isa(IsaKind::Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                isas.push(Isa(IsaKind::Avx2));
            }
            let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            let rest = is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl");
            if wide && rest && is_x86_feature_detected!("avx512vnni") && isas.len() == 2 {
                isas.push(Isa(IsaKind::Avx512));
            }
        }
        #[cfg(target_arch = "aarch64")]
        isas.push(Isa(IsaKind::Neon));
        isas
    }

    /// The number of f32 in a register.
    pub fn lanes(self) -> usize {
        match self.0 {
            IsaKind::Scalar => Scalar::LANES,
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx2 => Avx2::LANES,
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx512 => Avx512::LANES,
            #[cfg(target_arch = "aarch64")]
            IsaKind::Neon => Neon::LANES,
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self.0 {
            IsaKind::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            IsaKind::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            IsaKind::Neon => "neon",
        })
    }
}

impl std::fmt::Debug for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

mod sealed {
    /// Implemented by the register types of this module alone.
    pub trait Register {}
}

/// A register of f32. Kernels get one from [`simd!`](crate::simd); only this module implements it.
pub trait F32s:
    sealed::Register
    + Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// Lanes of a register.
    const LANES: usize;
    /// The register of as many u32.
    type Bits: U32s;
    /// The lane pattern of [`F32s::load_spread`].
    type Spread: Copy;

    /// The same value in every lane.
    fn splat(x: f32) -> Self;
    /// The first [`F32s::LANES`] elements of a slice that has at least that many.
    fn load(src: &[f32]) -> Self;
    /// The first elements of a slice, at most [`F32s::LANES`]; lanes past its end are 0.
    fn load_partial(src: &[f32]) -> Self;
    /// Loads bf16, unchecked.
    ///
    /// # Safety
    /// `src` is valid for reading [`F32s::LANES`] elements.
    unsafe fn load_bf16(src: *const bf16) -> Self;
    /// Loads f16, unchecked.
    ///
    /// # Safety
    /// `src` is valid for reading [`F32s::LANES`] elements.
    unsafe fn load_f16(src: *const f16) -> Self;
    /// Writes all lanes to the start of a slice that is long enough.
    fn store(self, dst: &mut [f32]);
    /// As [`F32s::store`], bypassing the caches if the slice is aligned to a register and the CPU has such a store.
    ///
    /// # Safety
    /// This thread executes a fence before another thread reads the slice, as
    /// [`NonTemporalWriter::with`](crate::cpu::NonTemporalWriter::with) does.
    #[inline(always)]
    unsafe fn stream(self, dst: &mut [f32]) {
        self.store(dst);
    }
    /// As [`F32s::store`], by the kind of store that `hint` asks for.
    #[inline(always)]
    fn put(self, dst: &mut [f32], hint: StoreHint<'_>) {
        if hint.is_non_temporal() {
            // SAFETY: the caller that took the hint from a `NonTemporalWriter` promised that `dst` is the writer's
            // memory; the writer fences on this thread, which the hint cannot leave, before the memory's borrow ends.
            unsafe { self.stream(dst) }
        } else {
            self.store(dst);
        }
    }
    /// Writes as many lanes as the slice has room for.
    fn store_partial(self, dst: &mut [f32]);
    /// As [`F32s::load`], unchecked: the innermost loops of matrix kernels.
    ///
    /// # Safety
    /// `src` is valid for reading [`F32s::LANES`] elements.
    unsafe fn load_ptr(src: *const f32) -> Self;
    /// As [`F32s::store`], unchecked.
    ///
    /// # Safety
    /// `dst` is valid for writing [`F32s::LANES`] elements.
    unsafe fn store_ptr(self, dst: *mut f32);
    /// `self · a + b`, in one rounding if the CPU has FMA.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The larger of each lane; `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// The smaller of each lane; `other` where either is NaN.
    fn min(self, other: Self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// `1 / self`, within 2 units in the last place where neither is denormal; 0 and infinity have each other.
    ///
    /// A division, unless the CPU's estimate with one Newton step is faster and still exact for 1 and 2.
    #[inline(always)]
    fn recip(self) -> Self {
        Self::splat(1.0) / self
    }
    /// The nearest integer, ties to even.
    fn round(self) -> Self;
    /// `self · 2ⁿ` for integers `n` between -252 and 254.
    fn scale_by_exp2(self, n: Self) -> Self;
    /// The sum of all lanes, in a fixed order.
    fn sum(self) -> f32;
    /// [`F32s::sum`] of four registers.
    #[inline(always)]
    fn sums(four: [Self; 4]) -> [f32; 4] {
        let [a, b, c, d] = four;
        [a.sum(), b.sum(), c.sum(), d.sum()]
    }
    /// The largest lane.
    fn max_lane(self) -> f32;
    /// Converts i32, rounded to the nearest f32.
    fn from_i32(x: Self::Bits) -> Self;
    /// Converts to i32. Lanes that are NaN or out of range give an unspecified value.
    fn to_i32(self) -> Self::Bits;
    /// The f32 with these bits.
    fn from_bits(x: Self::Bits) -> Self;
    /// Looks each lane's lowest four bits up in a table.
    fn gather16(table: &[f32; 16], at: Self::Bits) -> Self;
    /// The pattern that repeats each element in `each` lanes, a power of two.
    fn spread(each: usize) -> Self::Spread;
    /// Lane `i` is `src[i / each]`.
    ///
    /// # Safety
    /// `src` is valid for reading `LANES / each` elements, and at least one.
    unsafe fn load_spread(src: *const f32, spread: Self::Spread) -> Self;
}

/// A register of u32, with as many lanes as its [`F32s`]: integers, bit patterns and packed codes.
pub trait U32s: sealed::Register + Copy + BitAnd<Output = Self> + BitOr<Output = Self> + BitXor<Output = Self> {
    /// The same value in every lane.
    fn splat(x: u32) -> Self;
    /// The first elements of a slice of any length; lanes past its end are 0.
    fn load_partial(src: &[u32]) -> Self;
    /// Loads a register, unchecked: for innermost loops.
    ///
    /// # Safety
    /// `src` is valid for reading one element a lane.
    unsafe fn load_ptr(src: *const u32) -> Self;
    /// Each lane shifted up by `n` < 32 bits.
    fn shl(self, n: u32) -> Self;
    /// Each lane shifted down by `n` < 32 bits; zeros come in.
    fn shr(self, n: u32) -> Self;
    /// Unpacks codes of `bits` ≤ 8 bits from a little-endian stream, the lowest bits first: code `first` and the
    /// following ones, one a lane. `first` is a multiple of the number of lanes; all of them are in the stream.
    fn unpack(stream: &[u32], first: usize, bits: u32) -> Self;
    /// Unpacks codes of `bits` ≤ 6 bits from a little-endian stream into the lowest bits of each lane, four a lane.
    /// `first` is a multiple of four times the number of lanes. The bits above the four, and codes past the end, are
    /// unspecified.
    fn unpack4(stream: &[u32], first: usize, bits: u32) -> Self;
    /// Widens the four codes of `bits` < 8 bits in the lowest bits of each lane to a byte each.
    #[inline(always)]
    fn bytes(self, bits: u32) -> Self {
        let (one, two) = ((1 << bits) - 1, (1 << (2 * bits)) - 1);
        let pairs = (self & Self::splat(two)) | (self.shl(16 - 2 * bits) & Self::splat(two << 16));
        (pairs & Self::splat(one * 0x1_0001)) | (pairs.shl(8 - bits) & Self::splat(one * 0x100_0100))
    }
    /// Looks each byte, below 16, up in a table.
    fn table_lookup(self, table: &[u8; 16]) -> Self;
    /// Adds to each lane, an i32, the four products of its bytes: `codes`, u8 below 64, with `digits`, i8.
    fn dot_bytes(self, codes: Self, digits: Self) -> Self;
}

/// Code `at` of a stream of codes of `bits` ≤ 8 bits.
#[inline(always)]
fn code(stream: &[u32], at: usize, bits: u32) -> u32 {
    let (word, shift) = (at * bits as usize / 32, (at * bits as usize % 32) as u32);
    let low = stream[word] >> shift;
    let high = if shift + bits > 32 { stream[word + 1] << (32 - shift) } else { 0 };
    (low | high) & ((1 << bits) - 1)
}

/// Four codes of a stream, from code `at` on, in the lowest bits.
#[inline(always)]
fn quad(stream: &[u32], at: usize, bits: u32) -> u32 {
    let (word, shift) = (at * bits as usize / 32, at * bits as usize % 32);
    let of = |word: usize| u64::from(stream.get(word).copied().unwrap_or(0));
    ((of(word) | of(word + 1) << 32) >> shift) as u32
}

/// A computation over registers of any instruction set, as [`simd!`](crate::simd) defines them.
pub trait SimdKernel {
    /// The result.
    type Output;
    /// Computes with registers of type `S`. Implementations are `#[inline(always)]`, to be compiled for the instruction
    /// set of `S`.
    fn run<S: F32s>(self) -> Self::Output;
}

/// Runs a kernel with the registers of an instruction set.
#[inline]
pub fn dispatch<K: SimdKernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    fn avx512<K: SimdKernel>(kernel: K) -> K::Output {
        kernel.run::<Avx512>()
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn avx2<K: SimdKernel>(kernel: K) -> K::Output {
        kernel.run::<Avx2>()
    }
    match isa.0 {
        IsaKind::Scalar => kernel.run::<Scalar>(),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` is made only where the CPU has the instruction set.
        IsaKind::Avx2 => unsafe { avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` is made only where the CPU has the instruction set.
        IsaKind::Avx512 => unsafe { avx512(kernel) },
        #[cfg(target_arch = "aarch64")]
        IsaKind::Neon => kernel.run::<Neon>(),
    }
}

/// Defines a kernel that is compiled for each instruction set and takes an [`Isa`] before its arguments.
///
/// `fn name<S>(…) { … }` becomes `fn name(isa: Isa, …)`; inside, `S` is an [`F32s`]. One more type parameter with a
/// bound may follow: `fn map<S, F: Formula>(f: F, …)`.
#[macro_export]
macro_rules! simd {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident<$lanes:ident $(, $param:ident: $bound:path)?>(
        $($arg:ident: $ty:ty),* $(,)?
    ) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name$(<$param: $bound>)?(isa: $crate::cpu::Isa, $($arg: $ty),*) $(-> $ret)? {
            struct Call<A, P>(A, ::std::marker::PhantomData<P>);
            #[allow(unused_parens, clippy::let_unit_value)]
            impl$(<$param: $bound>)? $crate::cpu::simd::SimdKernel for Call<($($ty,)*), ($($param)?)> {
                type Output = ($($ret)?);
                #[inline(always)]
                fn run<$lanes: $crate::cpu::simd::F32s>(self) -> Self::Output {
                    // a function of its own, so that references keep what the compiler knows of arguments
                    #[inline(always)]
                    fn lanes<$lanes: $crate::cpu::simd::F32s $(, $param: $bound)?>($($arg: $ty),*) $(-> $ret)? $body
                    let ($($arg,)*) = self.0;
                    lanes::<$lanes $(, $param)?>($($arg),*)
                }
            }
            $crate::cpu::simd::dispatch(isa, Call(($($arg,)*), ::std::marker::PhantomData::<($($param)?)>))
        }
    )*};
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::simd! {
        fn dot<S>(a: &[f32], b: &[f32]) -> f32 {
            let whole = a.len() - a.len() % S::LANES;
            let mut sum = S::load_partial(&a[whole..]) * S::load_partial(&b[whole..]);
            for i in (0..whole).step_by(S::LANES) {
                sum = S::load(&a[i..]).mul_add(S::load(&b[i..]), sum);
            }
            sum.sum()
        }
        fn apart<S>(x: &[f32], n: &[f32], out: &mut [f32]) {
            for i in 0..x.len() {
                let (x, n) = (S::splat(x[i]), S::splat(n[i]));
                x.scale_by_exp2(n).store_partial(&mut out[i..=i]);
            }
        }
        fn largest<S>(x: &[f32]) -> f32 {
            S::load(x).max(S::splat(-1e30)).max_lane()
        }
        fn unpacked<S>(stream: &[u32], bits: u32, out: &mut [f32]) {
            for (i, out) in out.chunks_exact_mut(S::LANES).enumerate() {
                S::from_i32(S::Bits::unpack(stream, i * S::LANES, bits)).store(out);
            }
        }
        fn in_bytes<S>(stream: &[u32], bits: u32, out: &mut [u32]) {
            for (i, out) in out.chunks_exact_mut(S::LANES).enumerate() {
                let bytes = S::Bits::unpack4(stream, i * 4 * S::LANES, bits).bytes(bits);
                // a byte is exact as a float
                for at in 0..4 {
                    let mut lanes = [0.0; 16];
                    S::from_i32(bytes.shr(8 * at) & S::Bits::splat(255)).store(&mut lanes);
                    out.iter_mut().zip(lanes).for_each(|(out, lane)| *out |= (lane as u32) << (8 * at));
                }
            }
        }
        fn dot_of_bytes<S>(start: i32, codes: &[u32], digits: &[u32], out: &mut [f32]) {
            let table = &std::array::from_fn(|i| 2 * i as u8 + 1);
            let codes = S::Bits::load_partial(codes).table_lookup(table);
            let sum = S::Bits::splat(start as u32).dot_bytes(codes, S::Bits::load_partial(digits));
            S::from_i32(sum).store_partial(out);
        }
        fn picked<S>(table: &[f32; 16], at: &[u32], out: &mut [f32]) {
            for (at, out) in at.chunks(S::LANES).zip(out.chunks_mut(S::LANES)) {
                S::gather16(table, S::Bits::load_partial(at)).store_partial(out);
            }
        }
        fn spread<S>(src: &[f32], each: usize, out: &mut [f32]) {
            assert!(src.len() >= S::LANES.div_ceil(each));
            // SAFETY: the assert
            unsafe { S::load_spread(src.as_ptr(), S::spread(each)) }.store(out);
        }
        fn halves<S>(x: &[f16], y: &[bf16], out: &mut [f32]) {
            assert!(x.len() >= S::LANES && y.len() >= S::LANES);
            // SAFETY: the assert
            let (x, y) = unsafe { (S::load_f16(x.as_ptr()), S::load_bf16(y.as_ptr())) };
            x.store(out);
            y.store(&mut out[S::LANES..]);
        }
        fn whole<S>(x: &[f32], out: &mut [f32]) {
            for (x, out) in x.chunks_exact(S::LANES).zip(out.chunks_exact_mut(S::LANES)) {
                S::from_i32(S::load(x).to_i32() ^ S::Bits::splat(5)).store(out);
            }
        }
        fn four_sums<S>(x: &[f32], out: &mut [f32]) {
            let [a, b, c, d] = [0, 1, 2, 3].map(|i| S::load(&x[i * S::LANES..]));
            out.copy_from_slice(&S::sums([a, b, c, d]));
            out.iter().zip([a, b, c, d]).for_each(|(sum, x)| assert_eq!(*sum, x.sum()));
        }
        fn shifted<S>(x: &[u32], n: u32, out: &mut [f32]) {
            let x = S::Bits::load_partial(x);
            let low = x.shl(n).shr(n) & S::Bits::splat(0xff);
            S::from_bits(low.shl(23) | S::Bits::splat(1 << 31)).store_partial(out);
        }
    }

    #[test]
    fn every_isa_unpacks_the_same_codes() {
        let stream: Vec<u32> = (0..40u32).map(|i| i.wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995).collect();
        for bits in 1..=8u32 {
            let count = 40 * 32 / bits as usize / 32 * 32;
            let bit = |at: usize| stream[at / 32] >> (at % 32) & 1;
            let number = |at: usize| (0..bits as usize).map(|i| bit(at * bits as usize + i) << i).sum::<u32>();
            let want: Vec<f32> = (0..count).map(|at| number(at) as f32).collect();
            for isa in Isa::available() {
                let mut out = vec![0.0; count];
                unpacked(isa, &stream[..count * bits as usize / 32], bits, &mut out);
                assert_eq!(out, want, "{isa} {bits}");
            }
        }
    }

    #[test]
    fn four_codes_of_a_stream_become_the_bytes_of_a_lane_even_at_its_end() {
        let stream: Vec<u32> = (0..48u32).map(|i| i.wrapping_mul(0x9e37_79b9) ^ 0x5bd1_e995).collect();
        for bits in 1..=6u32 {
            let count = 48 * 32 / bits as usize / 64 * 64;
            let bit = |at: usize| stream.get(at / 32).map_or(0, |word| word >> (at % 32) & 1);
            let number = |at: usize| (0..bits as usize).map(|i| bit(at * bits as usize + i) << i).sum::<u32>();
            for (isa, words) in Isa::available().into_iter().flat_map(|l| [(l, 48), (l, 47)]) {
                let mut out = vec![0; count / 4];
                in_bytes(isa, &stream[..words], bits, &mut out);
                for (at, &got) in out.iter().enumerate().filter(|(at, _)| (4 * at + 4) * bits as usize <= 32 * words) {
                    let want = (0..4).map(|i| number(4 * at + i) << (8 * i)).sum::<u32>();
                    assert_eq!(got, want, "{isa}, {bits} bits, lane {at}");
                }
            }
        }
    }

    #[test]
    fn bytes_are_multiplied_with_their_signs_and_added_up() {
        let codes: [u32; 4] = [0x0f0f_0f0f, 0x0001_0203, 0x0f00_0000, 0x0f0f_0f0f];
        let digits: [u32; 4] = [0x8080_8080, 0x01ff_0280, 0x7f80_8080, 0x7f7f_7f7f];
        let of = |word: u32, i: usize| word.to_le_bytes()[i];
        let product =
            |lane: usize, i: usize| (2 * i32::from(of(codes[lane], i)) + 1) * i32::from(of(digits[lane], i) as i8);
        for isa in Isa::available() {
            let mut out = [0.0; 4];
            dot_of_bytes(isa, -7, &codes, &digits, &mut out);
            let want: [f32; 4] = std::array::from_fn(|lane| (0..4).map(|i| product(lane, i)).sum::<i32>() as f32 - 7.0);
            assert_eq!(out, want, "{isa}");
        }
    }

    #[test]
    fn a_table_is_read_by_the_lowest_four_bits_and_lanes_repeat() {
        let table: [f32; 16] = std::array::from_fn(|i| i as f32 - 7.5);
        let at: Vec<u32> = (0..37u32).map(|i| i * 7 + 0xabc0).collect();
        let want: Vec<f32> = at.iter().map(|&at| table[at as usize % 16]).collect();
        for isa in Isa::available() {
            let mut out = vec![0.0; at.len()];
            picked(isa, &table, &at, &mut out);
            assert_eq!(out, want, "{isa}");
            for each in [1, 2, 4, 8, 16, 32] {
                // no more is read than is there
                let (lanes, src) = (isa.lanes(), table[..isa.lanes().div_ceil(each)].to_vec());
                spread(isa, &src, each, &mut out);
                let want: Vec<f32> = (0..lanes).map(|i| src[i / each]).collect();
                assert_eq!(out[..lanes], want, "{isa} {each}");
            }
        }
    }

    #[test]
    fn half_precision_is_read_exactly() {
        let x = [1.5, -0.0, 65_504.0, 6e-8, f32::INFINITY, -2.25, 1e-5, 0.1, 3.0, -7.0, 0.5, 1e-4, -1.0, 2.0, 4.0, 8.0];
        let (small, large) = (x.map(f16::from_f32), x.map(bf16::from_f32));
        for isa in Isa::available() {
            let mut out = [0.0; 32];
            halves(isa, &small, &large, &mut out);
            let lanes = isa.lanes();
            assert_eq!(out[..lanes], small.map(f16::to_f32)[..lanes], "{isa}");
            assert_eq!(out[lanes..2 * lanes], large.map(bf16::to_f32)[..lanes], "{isa}");
        }
    }

    #[test]
    fn integers_are_converted_with_their_signs() {
        let x: Vec<f32> = (-8..8i8).map(|i| f32::from(i) * 1_000_003.0).collect();
        let want: Vec<f32> = x.iter().map(|&x| (x as i32 ^ 5) as f32).collect();
        for isa in Isa::available() {
            let mut out = [0.0; 16];
            whole(isa, &x, &mut out);
            assert_eq!(out[..], want, "{isa}");
        }
    }

    #[test]
    fn four_registers_have_the_sums_that_each_has() {
        for isa in Isa::available() {
            let x: Vec<f32> = (0..64u16).map(|i| (f32::from(i) * 0.7).sin() * 1e3).collect();
            let mut out = [0.0; 4];
            four_sums(isa, &x, &mut out);
            for (x, sum) in x.chunks(isa.lanes()).zip(out) {
                let want: f64 = x.iter().map(|&x| f64::from(x)).sum();
                assert!((f64::from(sum) - want).abs() < 1e-2, "{isa}: {sum} for {want}");
            }
        }
    }

    #[test]
    fn bits_are_shifted_masked_and_read_as_floats() {
        for isa in Isa::available() {
            let mut out = [0.0; 2];
            shifted(isa, &[0xff00_0000 | 127, 0xfe00_0000 | 130], 7, &mut out);
            assert_eq!(out, [-1.0, -8.0], "{isa}");
        }
    }

    #[test]
    fn every_isa_gives_the_same_dot_product_at_every_length() {
        for isa in Isa::available() {
            for n in 0..70u16 {
                let a: Vec<f32> = (0..n).map(f32::from).collect();
                let want: f32 = a.iter().map(|x| x * x).sum();
                assert_eq!(dot(isa, &a, &a), want, "{isa} {n}");
            }
        }
    }

    #[test]
    fn scaling_by_a_power_of_two_reaches_denormals_and_infinity() {
        let (x, n) = ([1.5, 1.5, 1.0, 1.9, -1.25], [127.0, 128.0, -149.0, -126.0, 3.0]);
        let want = [1.5 * 2f32.powi(127), f32::INFINITY, f32::from_bits(1), 1.9 * f32::MIN_POSITIVE, -10.0];
        for isa in Isa::available() {
            let mut out = [0.0; 5];
            apart(isa, &x, &n, &mut out);
            assert_eq!(out, want, "{isa}");
        }
    }

    #[test]
    fn the_largest_lane_is_found_wherever_it_is() {
        for isa in Isa::available() {
            for at in 0..isa.lanes() {
                let mut x = [-3.0; 16];
                x[at] = 2.5;
                assert_eq!(largest(isa, &x), 2.5, "{isa} {at}");
            }
        }
    }
}
