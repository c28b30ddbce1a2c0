//! Pieces shared by the launches of operations on a GPU.

pub(crate) mod copy;
pub(crate) mod form;
pub(crate) mod norm;
pub(crate) mod rows;
pub(crate) mod sort;
pub(crate) mod totals;

use alluvium_core::gpu::Kernel;

/// Cuts of bindings start at a multiple of this many bytes: the alignment of every engine divides it.
pub(crate) const ALIGNMENT: usize = 256;

/// Functions that kernels call: exponentials, gates, an error function.
pub(crate) const MATH: &str = include_str!("math.wgsl");

/// Functions for lines that do not begin or end at whole quads.
pub(crate) const ODD: &str = include_str!("odd.wgsl");

/// A kernel of this crate.
pub(crate) const fn kernel(name: &'static str, wgsl: &'static [&'static str]) -> Kernel {
    // SAFETY: kernels are private to the crate, and operations launch them only with sizes that their contracts checked;
    // `check` runs each over poisoned memory, whose ends are NaN, and every loop has an end in its text.
    unsafe { Kernel::trusted(name, wgsl) }
}
