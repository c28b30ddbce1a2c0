//! Element types as type parameters: kernels that move elements, and kernels that compute on half-precision storage.

use alluvium_core::Element;
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::{NonTemporalWriter, StoreHint};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Elements of a block, a multiple of every register: a few blocks fit in the first-level cache.
pub(crate) const BLOCK: usize = 1024;

/// A floating element that kernels see as f32, block by block.
pub(crate) trait Stored: Element {
    /// The values to read: themselves, or widened into the start of `wide`.
    fn widen<'a>(from: &'a [Self], wide: &'a mut [f32]) -> &'a [f32];
    /// A register of values, unchecked: innermost loops.
    ///
    /// # Safety
    /// `src` is valid for reading [`F32s::LANES`] values.
    unsafe fn load<S: F32s>(src: *const Self) -> S;
    /// Scratch that [`Stored::widen`] needs for this many elements.
    fn room(numbers: usize) -> Vec<f32>;
    /// The values to change: themselves, or widened into the start of `wide` until [`Stored::close`].
    fn open<'a>(block: &'a mut [Self], wide: &'a mut [f32]) -> &'a mut [f32];
    /// The values to write: the block itself, or the start of `wide` until [`Stored::close`].
    fn fresh<'a>(block: &'a mut [Self], wide: &'a mut [f32]) -> &'a mut [f32];
    /// Rounds what was changed back into the block, once.
    fn close(block: &mut [Self], wide: &[f32]);
    /// The values to read before those of a block are written: themselves; or none, and they are widened into the
    /// block.
    fn source<'a>(from: &'a [Self], to: &mut [f32]) -> Option<&'a [f32]>;
    /// The next elements to write without the caches: memory itself, or the start of `wide` until [`Stored::finish`].
    fn next<'a>(
        to: &'a mut NonTemporalWriter<'_, Self>,
        len: usize,
        wide: &'a mut [f32],
    ) -> (&'a mut [f32], StoreHint<'a>);
    /// Writes what was rounded, if it is not there yet.
    fn finish(to: &mut NonTemporalWriter<'_, Self>, wide: &[f32]);
}

impl Stored for f32 {
    #[inline(always)]
    fn widen<'a>(from: &'a [f32], _wide: &'a mut [f32]) -> &'a [f32] {
        from
    }
    #[inline(always)]
    unsafe fn load<S: F32s>(src: *const f32) -> S {
        // SAFETY: the caller's promise.
        unsafe { S::load_ptr(src) }
    }
    fn room(_numbers: usize) -> Vec<f32> {
        Vec::new()
    }
    fn open<'a>(block: &'a mut [f32], _wide: &'a mut [f32]) -> &'a mut [f32] {
        block
    }
    fn fresh<'a>(block: &'a mut [f32], _wide: &'a mut [f32]) -> &'a mut [f32] {
        block
    }
    fn close(_block: &mut [f32], _wide: &[f32]) {}
    fn source<'a>(from: &'a [f32], _to: &mut [f32]) -> Option<&'a [f32]> {
        Some(from)
    }
    fn next<'a>(
        to: &'a mut NonTemporalWriter<'_, f32>,
        len: usize,
        _wide: &'a mut [f32],
    ) -> (&'a mut [f32], StoreHint<'a>) {
        // SAFETY: both go to one kernel as one `Block`, whose stores with the hint are to its memory.
        unsafe { to.next(len) }
    }
    fn finish(_to: &mut NonTemporalWriter<'_, f32>, _wide: &[f32]) {}
}

macro_rules! half {
    ($($half:ty, $load:ident, $widen:expr;)*) => {$(
        impl Stored for $half {
            #[inline(always)]
            fn widen<'a>(from: &'a [$half], wide: &'a mut [f32]) -> &'a [f32] {
                let wide = &mut wide[..from.len()];
                $widen(from, wide);
                wide
            }
            #[inline(always)]
            unsafe fn load<S: F32s>(src: *const $half) -> S {
                // SAFETY: the caller's promise.
                unsafe { S::$load(src) }
            }
            fn room(numbers: usize) -> Vec<f32> {
                vec![0.0; numbers]
            }
            fn open<'a>(block: &'a mut [$half], wide: &'a mut [f32]) -> &'a mut [f32] {
                let wide = &mut wide[..block.len()];
                block.convert_to_f32_slice(wide);
                wide
            }
            fn fresh<'a>(block: &'a mut [$half], wide: &'a mut [f32]) -> &'a mut [f32] {
                &mut wide[..block.len()]
            }
            fn close(block: &mut [$half], wide: &[f32]) {
                block.convert_from_f32_slice(&wide[..block.len()]);
            }
            fn source<'a>(from: &'a [$half], to: &mut [f32]) -> Option<&'a [f32]> {
                from.convert_to_f32_slice(to);
                None
            }
            fn next<'a>(
                _: &'a mut NonTemporalWriter<'_, $half>,
                len: usize,
                wide: &'a mut [f32],
            ) -> (&'a mut [f32], StoreHint<'a>) {
                (&mut wide[..len], StoreHint::CACHED)
            }
            fn finish(to: &mut NonTemporalWriter<'_, $half>, wide: &[f32]) {
                let mut narrow = [<$half>::ZERO; BLOCK];
                let narrow = &mut narrow[..wide.len()];
                narrow.convert_from_f32_slice(wide);
                to.write(narrow);
            }
        }
    )*};
}
half! {
    f16, load_f16, <[f16]>::convert_to_f32_slice;
    // a loop that becomes lanes where it is part of a kernel
    bf16, load_bf16, |from: &[bf16], wide: &mut [f32]| {
        wide.iter_mut().zip(from).for_each(|(to, x)| *to = f32::from_bits(u32::from(x.to_bits()) << 16));
    };
}

/// Runs an expression with `T` the element type of a floating dtype; an error for the others.
macro_rules! by_storage {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            alluvium_core::DType::F32 => {
                type $T = f32;
                $body
            }
            alluvium_core::DType::F16 => {
                type $T = half::f16;
                $body
            }
            alluvium_core::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            other => return Err(alluvium_core::Error::value("read", format!("{other} is not a floating dtype"))),
        }
    };
}
pub(crate) use by_storage;

/// Runs an expression with `T` the element type of any dtype.
macro_rules! by_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            alluvium_core::DType::U32 => {
                type $T = u32;
                $body
            }
            alluvium_core::DType::U8 => {
                type $T = u8;
                $body
            }
            float => crate::common::stored::by_storage!(float, $T => $body),
        }
    };
}
pub(crate) use by_element;
