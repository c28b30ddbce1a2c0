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

#[macro_use]
mod operators;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod isa;
pub mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512;
pub use isa::Isa;
use isa::IsaKind;
#[cfg(target_arch = "aarch64")]
use neon::Neon;
use scalar::Scalar;

use super::StoreHint;
use half::{bf16, f16};
use std::ops::{Add, AddAssign, BitAnd, BitOr, BitXor, Div, Mul, Neg, Sub};

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
    /// Adds to each lane, an i32, the products of its bytes in as many registers as both slices have: `codes`, u8, with
    /// `digits`, i8. The codes of one byte in all registers are at most 127 together.
    fn dot_bytes(self, codes: &[Self], digits: &[Self]) -> Self;
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
