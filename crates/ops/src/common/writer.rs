//! Writers of results: kernels write f32 blocks, which are rounded to the storage and written with or without cache.

use super::stored::{BLOCK, Stored};
use alluvium_core::cpu::{NonTemporalWriter, StoreHint};

/// The memory of a result, or the share of a task, and the old values that a kernel may read.
pub(crate) struct Target<'a, T> {
    to: &'a mut [T],
    before: Before<'a, T>,
    large: bool,
}

#[derive(Clone, Copy)]
enum Before<'a, T> {
    Nothing,
    Itself,
    Other(&'a [T]),
}

impl<'a, T: Stored> Target<'a, T> {
    /// New memory, whose old values must not be read.
    pub(crate) fn new(to: &'a mut [T]) -> Self {
        let large = size_of_val(to) >= NonTemporalWriter::<T>::THRESHOLD;
        Target { to, before: Before::Nothing, large }
    }

    /// Memory whose values the kernel updates.
    pub(crate) fn over(to: &'a mut [T]) -> Self {
        Target { to, before: Before::Itself, large: false }
    }

    /// New memory; the kernel reads the old values from `before`, which has the same length.
    pub(crate) fn after(before: &'a [T], to: &'a mut [T]) -> Self {
        Target { before: Before::Other(before), ..Target::new(to) }
    }

    /// Calls `write` with a writer of this memory, for the thread that it runs on.
    pub(crate) fn write_with<R>(self, write: impl FnOnce(&mut Writer<'_, T>) -> R) -> R {
        Target::write_all([self], |[mut writer]| write(&mut writer))
    }

    /// As [`Target::write_with`], for several results.
    pub(crate) fn write_all<const N: usize, R>(targets: [Self; N], write: impl FnOnce([Writer<'_, T>; N]) -> R) -> R {
        let wide = [0.0; BLOCK];
        if targets.iter().all(|target| !target.large) {
            return write(targets.map(|Target { to, before, .. }| Writer {
                place: WritePlace::Memory(to),
                before,
                wide,
            }));
        }
        let mut rest = targets.each_ref().map(|target| (target.before, target.large)).into_iter();
        NonTemporalWriter::with_all(targets.map(|target| target.to), |writers| {
            write(writers.map(|writer| match rest.next() {
                Some((before, true)) => Writer { place: WritePlace::NonTemporal(writer), before, wide },
                Some((before, false)) => Writer { place: WritePlace::Memory(writer.into_rest()), before, wide },
                None => Writer { place: WritePlace::Memory(writer.into_rest()), before: Before::Nothing, wide },
            }))
        })
    }
}

/// Memory that can be cut into the shares of tasks.
pub(crate) trait Share: Send {
    /// The number of elements.
    fn len(&self) -> usize;
    /// Cuts the first `len` elements off.
    fn cut(&mut self, len: usize) -> Self;
}

impl<T: Stored> Share for Target<'_, T> {
    fn len(&self) -> usize {
        self.to.len()
    }

    fn cut(&mut self, len: usize) -> Self {
        let before = match &mut self.before {
            Before::Other(from) => Before::Other(from.split_off(..len).unwrap_or_default()),
            same => *same,
        };
        Target { to: self.to.cut(len), before, large: self.large }
    }
}

impl<T: Send> Share for &mut [T] {
    fn len(&self) -> usize {
        <[T]>::len(self)
    }

    fn cut(&mut self, len: usize) -> Self {
        self.split_off_mut(..len).unwrap_or_default()
    }
}

/// A block that a kernel writes.
pub(crate) struct WriteBlock<'a> {
    /// All of it is to be written.
    pub(crate) to: &'a mut [f32],
    /// The previous contents; `None` if `to` itself holds them.
    pub(crate) before: Option<&'a [f32]>,
    pub(crate) stores: StoreHint<'a>,
}

/// Writes a target from its start on, block by block.
pub(crate) struct Writer<'a, T: Stored> {
    place: WritePlace<'a, T>,
    before: Before<'a, T>,
    wide: [f32; BLOCK],
}

enum WritePlace<'a, T: Stored> {
    Memory(&'a mut [T]),
    NonTemporal(NonTemporalWriter<'a, T>),
}

impl<T: Stored> Writer<'_, T> {
    /// Lets `kernel` fill the next `len` values, at most [`BLOCK`].
    pub(crate) fn write(&mut self, len: usize, kernel: impl FnOnce(WriteBlock<'_>)) {
        kernel(self.open(len));
        self.close(len);
    }

    /// The next `len` values, for a kernel; [`Writer::close`] must follow.
    pub(crate) fn open(&mut self, len: usize) -> WriteBlock<'_> {
        let (to, stores) = match &mut self.place {
            WritePlace::NonTemporal(stream) => T::next(stream, len, &mut self.wide),
            WritePlace::Memory(rest) => match self.before {
                Before::Itself => (T::open(&mut rest[..len], &mut self.wide), StoreHint::CACHED),
                _ => (T::fresh(&mut rest[..len], &mut self.wide), StoreHint::CACHED),
            },
        };
        let before = match self.before {
            Before::Other(from) => T::source(&from[..len], to),
            _ => None,
        };
        WriteBlock { to, before, stores }
    }

    /// Rounds what the kernel wrote to the storage, once, and goes on.
    pub(crate) fn close(&mut self, len: usize) {
        match &mut self.place {
            WritePlace::Memory(rest) => T::close(rest.cut(len), &self.wide),
            WritePlace::NonTemporal(stream) => T::finish(stream, &self.wide[..len]),
        }
        if let Before::Other(from) = &mut self.before {
            *from = &from[len..];
        }
    }
}
