//! The two forms of kernels over rows: vec4 if the width is a multiple of four, scalar otherwise.

use alluvium_core::DType;
use alluvium_core::gpu::Kernel;

/// Text before a kernel that takes `Num`, `Stored`, `widen`, `narrow` and `total` as four elements.
pub(crate) const QUADS: &str = include_str!("vec4.wgsl");
/// The same names for one value.
pub(crate) const SINGLES: &str = include_str!("scalar.wgsl");
/// Text after [`MATH`](super::MATH) and [`QUADS`]: `silu` and `silu_and_derivative` of a `Num`.
pub(crate) const QUADS_MATH: &str = include_str!("vec4_math.wgsl");
/// The same after [`SINGLES`].
pub(crate) const SINGLES_MATH: &str = include_str!("scalar_math.wgsl");

/// The access width for rows of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Four elements at once, as they are stored.
    Quads(DType),
    /// One number at once, always in f32: half-precision tensors are converted before and after.
    Singles,
}

impl Form {
    /// The form for rows of `width` values stored as `dtype`.
    pub(crate) fn of(width: usize, dtype: DType) -> Self {
        if width.is_multiple_of(4) { Form::Quads(dtype) } else { Form::Singles }
    }

    /// Elements of a unit.
    pub(crate) fn unit(self) -> usize {
        match self {
            Form::Quads(_) => 4,
            Form::Singles => 1,
        }
    }

    /// The dtype that the kernel reads and writes.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Form::Quads(dtype) => dtype,
            Form::Singles => DType::F32,
        }
    }

    /// The dtypes of the text's `X4`.
    pub(crate) fn stored(self) -> [(&'static str, DType); 1] {
        [("X", self.dtype())]
    }

    /// The kernel for this form, of one over vec4s and one over single elements.
    pub(crate) fn choose(self, kernels: &'static [Kernel; 2]) -> &'static Kernel {
        match self {
            Form::Quads(_) => &kernels[0],
            Form::Singles => &kernels[1],
        }
    }
}
