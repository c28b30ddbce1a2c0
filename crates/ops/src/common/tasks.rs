//! Independent tasks that each need scratch memory and write rows scattered over shared results.

use alluvium_core::cpu::{Buffer, Cpu};
use alluvium_core::{Result, Tensor};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs `work(task, scratch)` for every task. Each worker has `length` values of scratch for the whole call.
///
/// # Errors
/// When the scratch does not fit into memory.
pub(crate) fn each(cpu: &Cpu, tasks: usize, length: usize, work: impl Fn(usize, &mut [f32]) + Sync) -> Result<()> {
    let workers = cpu.threads().min(tasks).max(1);
    let length = length.next_multiple_of(16);
    let mut scratch = cpu.buffer::<f32>(workers * length)?;
    let next = AtomicUsize::new(0);
    cpu.run(|| {
        scratch.par_chunks_mut(length).for_each(|scratch| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    return;
                }
                work(task, scratch);
            }
        });
    });
    Ok(())
}

/// Memory that several tasks write, each its own parts.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    memory: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is a slice of values; `part` leaves the duty that parts are disjoint to its caller.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(memory: &'a mut [f32]) -> Self {
        Shared { start: memory.as_mut_ptr(), len: memory.len(), memory: PhantomData }
    }

    /// Whether it has no memory: a gradient that is not needed.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values `from .. from + len`.
    ///
    /// # Safety
    /// Nothing else touches them while the result lives.
    pub(crate) unsafe fn part(&self, from: usize, len: usize) -> &'a mut [f32] {
        assert!(from.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: the range lies inside the memory, and the caller promises that nothing else touches it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}

/// The gradients of `N` inputs, while tasks write them. A gradient that is not needed, and one of an input that is not
/// there, has no memory.
pub(crate) struct GradientBuffers<'a, const N: usize> {
    inputs: [Option<&'a Tensor>; N],
    buffers: [Option<Buffer<f32>>; N],
}

impl<'a, const N: usize> GradientBuffers<'a, N> {
    pub(crate) fn new(cpu: &Cpu, inputs: [Option<&'a Tensor>; N], need: [bool; N]) -> Result<Self> {
        let mut buffers = [const { None }; N];
        for ((buffer, input), need) in buffers.iter_mut().zip(inputs).zip(need) {
            *buffer = input.filter(|_| need).map(|x| cpu.buffer(x.elements())).transpose()?;
        }
        Ok(GradientBuffers { inputs, buffers })
    }

    pub(crate) fn shared(&mut self) -> [Shared<'_>; N] {
        self.buffers.each_mut().map(|buffer| Shared::new(buffer.as_deref_mut().unwrap_or_default()))
    }

    /// The gradients in the shapes and dtypes of their inputs.
    pub(crate) fn into_tensors(self, cpu: &Cpu) -> Result<[Option<Tensor>; N]> {
        let mut gradients = [const { None }; N];
        for ((gradient, buffer), input) in gradients.iter_mut().zip(self.buffers).zip(self.inputs) {
            let tensor = |(data, x): (Buffer<f32>, &Tensor)| cpu.tensor(data, x.shape(), x.dtype());
            *gradient = buffer.zip(input).map(tensor).transpose()?;
        }
        Ok(gradients)
    }
}
