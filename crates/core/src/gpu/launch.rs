//! Launches: a kernel, the tensors that it binds, and its grid.

use super::engine::Binding;
use super::{Gpu, Kernel, Variant, failed};
use crate::{DType, Error, Kind, Result, Tensor};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::Ordering;

/// One run of a kernel.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// The entry point of its text.
    pub entry: &'static str,
    /// Constants that the text is compiled with.
    pub constants: &'a [(&'static str, u32)],
    /// Storage dtypes that the text is compiled with: `("X", dtype)` makes `X4`, `widen_X` and `narrow_X`.
    pub stored: &'a [(&'static str, DType)],
    /// The tensors, by number of binding. The kernel's text declares which of them it writes
    /// (`var<storage, read_write>`).
    pub binds: &'a [Bind<'a>],
    /// The immediates: a struct of u32 and f32 fields, as the text declares it.
    pub params: &'a [u8],
    /// The grid.
    pub groups: Groups,
}

/// A tensor as a kernel sees it.
#[derive(Clone, Debug)]
pub enum Bind<'a> {
    /// All of it.
    All(&'a Tensor),
    /// These bytes of it; the first is a multiple of [`Limits::alignment`](super::Limits).
    Part(&'a Tensor, Range<usize>),
    /// Nothing: the entry point does not use this binding.
    Unused,
}

/// The grid of a launch, in workgroups.
#[derive(Clone, Copy, Debug)]
pub enum Groups {
    /// This many in a row. Where one axis cannot hold them they go on along the next, and `group_index` in the text
    /// counts through; a workgroup past the last one returns at once.
    Line(usize),
    /// Along each axis.
    Grid([usize; 3]),
}

/// The bytes of a tensor that a binding sees: of the tensor itself, or of an aligned copy.
struct View<'a> {
    tensor: Cow<'a, Tensor>,
    first: usize,
    len: usize,
}

impl View<'_> {
    fn binding(&self) -> Result<Binding<'_>> {
        Ok(Binding { buffer: self.tensor.gpu_bytes()?.buffer()?, first: self.first, len: self.len })
    }
}

impl Gpu {
    /// Launches that were enqueued since the handle was opened.
    pub fn launches(&self) -> u64 {
        self.0.launches.load(Ordering::Relaxed)
    }

    /// Enqueues a run of a kernel and returns at once.
    ///
    /// # Errors
    /// [`Kind::Gpu`] when a binding or the grid is larger than the adapter allows, a tensor is on another device, the
    /// kernel writes to a tensor that another binding sees or that no binding may start at, the adapter refuses the
    /// kernel or its bindings, or the device was lost.
    pub fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.check_alive()?;
        let variant = Variant { entry: launch.entry, constants: launch.constants, stored: launch.stored };
        let pipeline = self.engine().pipeline(launch.kernel, variant)?;
        let grid = self.grid(launch)?;
        if !launch.params.len().is_multiple_of(4) {
            return Err(self.refused(launch, format!("takes {} bytes of params: no u32 each", launch.params.len())));
        }
        let mut views = Vec::with_capacity(launch.binds.len());
        for (number, bind) in launch.binds.iter().enumerate() {
            views.push(self.view(launch, bind, pipeline.writes(number))?);
        }
        let mut bindings = Vec::with_capacity(views.len());
        for view in &views {
            bindings.push(view.as_ref().map(View::binding).transpose()?);
        }
        for (number, written) in views.iter().enumerate().filter(|(number, _)| pipeline.writes(*number)) {
            let (Some(written), Some(binding)) = (written, &bindings[number]) else { continue };
            let shared = |other: &Option<Binding<'_>>| other.is_some_and(|other| other.buffer.is(binding.buffer));
            let readers = bindings.iter().enumerate().filter(|(other, _)| !pipeline.writes(*other));
            if readers.into_iter().any(|(_, other)| shared(other)) {
                return Err(self.refused(launch, format!("reads and writes the memory of binding {number}")));
            }
            written.tensor.gpu_bytes()?.invalidate_mirror();
        }
        self.0.launches.fetch_add(1, Ordering::Relaxed);
        self.engine().dispatch(&pipeline, &bindings, launch.params, grid)
    }

    /// The grid within the adapter's limit.
    fn grid(&self, launch: &Launch<'_>) -> Result<[u32; 3]> {
        let most = self.limits().groups;
        let grid = match launch.groups {
            Groups::Line(n) if n <= most => [n, 1, 1],
            Groups::Line(n) => [n.div_ceil(n.div_ceil(most)), n.div_ceil(most), 1],
            Groups::Grid(grid) => grid,
        };
        let fits = |n| u32::try_from(n).ok().filter(|_| n <= most);
        match grid.map(fits) {
            [Some(x), Some(y), Some(z)] => Ok([x, y, z]),
            _ => Err(self.refused(launch, format!("needs a grid of {grid:?} workgroups, but {most} go along an axis"))),
        }
    }

    /// The bytes of a tensor at a place where a binding may start: its own, or a copy that is only read.
    fn view<'a>(&self, launch: &Launch<'_>, bind: &'a Bind<'a>, written: bool) -> Result<Option<View<'a>>> {
        let (tensor, range) = match bind {
            Bind::Unused => return Ok(None),
            Bind::All(tensor) => (*tensor, 0..tensor.bytes_len()),
            Bind::Part(tensor, range) => (*tensor, range.clone()),
        };
        self.check_own(launch.kernel.name, tensor)?;
        let total = tensor.bytes_len();
        // whole quads of f32, which the buffer has room for
        if range.start > range.end || range.end > total.next_multiple_of(16) {
            return Err(self.refused(launch, format!("binds bytes {range:?} of {tensor:?}, which has {total}")));
        }
        let limits = self.limits();
        let len = range.len().max(1).next_multiple_of(16);
        if len > limits.binding {
            let [len, most] = [len, limits.binding].map(crate::error::Bytes);
            let why = format!("binds {len} of {tensor:?}, but a binding holds at most {most}");
            return Err(self.refused(launch, why));
        }
        let (tensor, first) = match tensor.offset() + range.start {
            first if first.is_multiple_of(limits.alignment) => (Cow::Borrowed(tensor), first),
            _ if written => {
                let why = format!("writes to {tensor:?}, which starts where no binding may; write to a copy");
                return Err(self.refused(launch, why));
            }
            _ if !range.start.is_multiple_of(limits.alignment) => {
                let why = format!("binds bytes from {} on, no multiple of {}", range.start, limits.alignment);
                return Err(self.refused(launch, why));
            }
            _ => (Cow::Owned(self.aligned(tensor)?), range.start),
        };
        // rows at the end of a buffer may have no whole quad after them
        let len = len.min(tensor.gpu_bytes()?.capacity() - first);
        Ok(Some(View { tensor, first, len }))
    }

    /// # Errors
    /// [`Kind::Device`] when the tensor is not of this handle.
    pub(crate) fn check_own(&self, what: &'static str, tensor: &Tensor) -> Result<()> {
        match tensor.device() {
            crate::Device::Gpu(gpu) if gpu == self => Ok(()),
            other => Err(Kind::device(what, ("the launch", &self.clone().into()), ("a tensor", other)).into()),
        }
    }

    fn refused(&self, launch: &Launch<'_>, why: String) -> Error {
        failed(self.name(), format!("{} {why}; use smaller sizes or other tensors", launch.kernel.name))
    }
}
