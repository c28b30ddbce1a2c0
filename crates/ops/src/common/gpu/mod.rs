//! Code that GPU launches of several families share.

pub(crate) mod copy;
pub(crate) mod form;
pub(crate) mod norm;
pub(crate) mod rows;
pub(crate) mod sort;
pub(crate) mod totals;

use alluvium_core::gpu::{Kernel, NativeBody};
use alluvium_core::{Error, Result};

/// Cuts of bindings start at a multiple of this many bytes: the alignment of every engine divides it.
pub(crate) const ALIGNMENT: usize = 256;

/// Functions that kernels call: exponentials, gates, an error function.
pub(crate) const MATH: &str = include_str!("math.wgsl");

/// What every kernel in CUDA C++ begins with.
pub(crate) const NATIVE: &str = include_str!("native.cuh");

/// Tiles and products of a warp on NVIDIA's matrix units, after [`NATIVE`]; the launch gives `WIDTH`.
pub(crate) const MATRIX: &str = include_str!("matrix.cuh");

/// Functions for lines that do not begin or end at whole vec4s.
pub(crate) const ODD: &str = include_str!("odd.wgsl");

/// A kernel of this crate.
pub(crate) const fn kernel(name: &'static str, wgsl: &'static [&'static str]) -> Kernel {
    // SAFETY: kernels are private to the crate, and operations launch them only with sizes that their contracts
    // checked; `check` runs each over poisoned memory, whose ends are NaN, and every loop has an end in its text.
    unsafe { Kernel::trusted(name, wgsl).with_bodies(BODIES) }
}

/// Functions of the crate's WGSL in CUDA C++, where NVIDIA's GPUs have instructions for them.
const BODIES: &[NativeBody] = &[
    // within 2 units in the last place, as the text
    NativeBody { function: "exp4", cuda: "vec<float, 4> r; EACH(4) (&r.x)[i] = expf((&a0.x)[i]); return r;" },
    NativeBody { function: "part_sum", cuda: "return sum_of_neighbors(a0, LANES);" },
    NativeBody { function: "sum_of_32", cuda: "return sum_of_neighbors(a0, 32u);" },
];

/// A size as a parameter of a kernel.
///
/// # Errors
/// When it needs more than 32 bits.
pub(crate) fn to_u32(size: usize) -> Result<u32> {
    u32::try_from(size)
        .map_err(|_| Error::value("launch", format!("a size is {size}, kernels take at most {}", u32::MAX)))
}

/// Sizes as parameters of a kernel.
///
/// # Errors
/// As [`to_u32`].
pub(crate) fn to_u32s<const N: usize>(sizes: [usize; N]) -> Result<[u32; N]> {
    let mut params = [0; N];
    for (param, size) in params.iter_mut().zip(sizes) {
        *param = to_u32(size)?;
    }
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_of_more_than_32_bits_is_an_error_and_not_cut_off() {
        assert_eq!(to_u32s([0, u32::MAX as usize]).unwrap(), [0, u32::MAX]);
        let error = to_u32s([1, 1 << 32]).unwrap_err().to_string();
        assert_eq!(error, "launch: a size is 4294967296, kernels take at most 4294967295");
    }
}
