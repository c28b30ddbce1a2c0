//! Element types as type parameters: kernels that move elements, and kernels that compute on half-precision storage.

use alluvium_core::Element;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A floating element that kernels see as f32, block by block.
pub(crate) trait Stored: Element {
    /// The numbers to read: themselves, or widened into the start of `wide`.
    fn widen<'a>(from: &'a [Self], wide: &'a mut [f32]) -> &'a [f32];
    /// The numbers to change: themselves, or widened into the start of `wide` until [`Stored::close`].
    fn open<'a>(block: &'a mut [Self], wide: &'a mut [f32]) -> &'a mut [f32];
    /// Rounds what was changed back into the block, once.
    fn close(block: &mut [Self], wide: &[f32]);
}

impl Stored for f32 {
    fn widen<'a>(from: &'a [f32], _wide: &'a mut [f32]) -> &'a [f32] {
        from
    }
    fn open<'a>(block: &'a mut [f32], _wide: &'a mut [f32]) -> &'a mut [f32] {
        block
    }
    fn close(_block: &mut [f32], _wide: &[f32]) {}
}

macro_rules! half {
    ($($half:ty),*) => {$(
        impl Stored for $half {
            fn widen<'a>(from: &'a [$half], wide: &'a mut [f32]) -> &'a [f32] {
                let wide = &mut wide[..from.len()];
                from.convert_to_f32_slice(wide);
                wide
            }
            fn open<'a>(block: &'a mut [$half], wide: &'a mut [f32]) -> &'a mut [f32] {
                let wide = &mut wide[..block.len()];
                block.convert_to_f32_slice(wide);
                wide
            }
            fn close(block: &mut [$half], wide: &[f32]) {
                block.convert_from_f32_slice(&wide[..block.len()]);
            }
        }
    )*};
}
half!(f16, bf16);

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
            other => return Err(alluvium_core::Error::value("read", format!("{other} does not hold floating numbers"))),
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
