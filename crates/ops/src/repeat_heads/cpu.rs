//! Rows are copied forward and summed backward, each by one thread.

use crate::common::stored::by_storage;
use alluvium_core::cpu::Cpu;
use alluvium_core::{Result, Shape, Tensor};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, x: &Tensor, times: usize, shape: Shape) -> Result<Tensor> {
    let width = shape.last();
    by_storage!(x.dtype(), T => {
        let (from, mut to) = (x.slice::<T>()?, cpu.buffer::<T>(shape.elements())?);
        let grain = cpu.grain(from.len() / width, times * width);
        cpu.run(|| {
            to.par_chunks_mut(grain * times * width).zip(from.par_chunks(grain * width)).for_each(|(to, from)| {
                for (to, head) in to.chunks_exact_mut(times * width).zip(from.chunks_exact(width)) {
                    to.chunks_exact_mut(width).for_each(|to| to.copy_from_slice(head));
                }
            });
        });
        cpu.wrap(to, shape)
    })
}

pub(super) fn backward(cpu: &Cpu, dy: &Tensor, times: usize, shape: Shape) -> Result<Tensor> {
    let (width, isa) = (shape.last(), cpu.isa());
    let (dys, mut dx) = (cpu.read(dy)?, cpu.buffer(shape.elements())?);
    let grain = cpu.grain(dx.len() / width, times * width);
    cpu.run(|| {
        dx.par_chunks_mut(grain * width).zip(dys.par_chunks(grain * times * width)).for_each(|(dx, dy)| {
            for (dx, dy) in dx.chunks_exact_mut(width).zip(dy.chunks_exact(times * width)) {
                sum(isa, dy, dx);
            }
        });
    });
    cpu.tensor(dx, shape, dy.dtype())
}

alluvium_core::simd! {
    /// The sum of the rows of `dy`.
    fn sum<S>(dy: &[f32], dx: &mut [f32]) {
        let width = dx.len();
        for at in (0..width).step_by(S::LANES) {
            let span = at..width.min(at + S::LANES);
            let mut sum = S::load_partial(&dy[span.clone()]);
            for dy in dy[width..].chunks_exact(width) {
                sum += S::load_partial(&dy[span.clone()]);
            }
            sum.store_partial(&mut dx[span]);
        }
    }
}
