//! The limits of a GPU that plans of launches depend on.

/// The limits of an engine. Plans of launches ask here instead of assuming the constants of a library.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most bytes of a buffer that a kernel sees through one binding.
    pub binding: usize,
    /// The most bytes of a buffer.
    pub buffer: usize,
    /// A binding starts at a multiple of this many bytes.
    pub alignment: usize,
    /// Workgroups along one axis of the grid.
    pub groups: usize,
    /// Bytes of memory that a workgroup shares.
    pub shared: usize,
    /// Invocations of a workgroup.
    pub invocations: usize,
    /// Whether reductions may use subgroups.
    pub subgroups: bool,
    /// Whether there are cooperative matrices of 8×8 f32, as Apple's GPUs have them.
    pub matrices_f32: bool,
    /// Whether there are cooperative matrices of 16×16 f16 with f32 sums, as NVIDIA's GPUs have them.
    pub matrices_f16: bool,
}
