//! Pieces shared by the launches of operations on a GPU.

pub(crate) mod map;

/// Functions that kernels call: exponentials, gates, an error function.
pub(crate) const MATH: &str = include_str!("math.wgsl");
