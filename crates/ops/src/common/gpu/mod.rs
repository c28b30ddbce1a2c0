//! Pieces shared by the launches of operations on a GPU.

pub(crate) mod chunk;
pub(crate) mod copy;
pub(crate) mod experts;
pub(crate) mod form;
pub(crate) mod gemm;
pub(crate) mod map;
pub(crate) mod norm;
pub(crate) mod quantized;
pub(crate) mod reduce;
pub(crate) mod rows;
pub(crate) mod sort;
pub(crate) mod totals;

/// Functions that kernels call: exponentials, gates, an error function.
pub(crate) const MATH: &str = include_str!("math.wgsl");

/// Functions for lines that do not begin or end at whole quads.
pub(crate) const ODD: &str = include_str!("odd.wgsl");
