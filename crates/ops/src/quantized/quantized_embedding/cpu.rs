//! Threads over rows to gather; over ranges of the table to add, so that no two threads share a sum.

use super::{CONTRACT, Grad};
use crate::common::ids::below;
use crate::linalg::weights::scratch;
use crate::quantized::cpu::Codes;
use crate::quantized::{PackedLayout, Quantized};
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Result, Shape, Tensor};
use rayon::prelude::*;

pub(super) fn forward(
    cpu: &Cpu,
    q: &Quantized<'_>,
    layout: PackedLayout,
    ids: &Tensor,
    like: (Shape, DType),
) -> Result<Tensor> {
    let (width, codes, isa) = (layout.inner, Codes::new(q, layout)?, cpu.isa());
    let ids = below(CONTRACT.op, "ids", ids, ('V', q.w.shape()[0]))?;
    let mut y = cpu.buffer(ids.len() * width)?;
    let grain = cpu.grain(ids.len(), width);
    cpu.run(|| {
        y.par_chunks_mut(grain * width).zip(ids.par_chunks(grain)).for_each_init(
            || scratch(2 * layout.groups),
            |wide, (y, ids)| {
                for (y, &id) in y.chunks_exact_mut(width).zip(ids) {
                    codes.expand(isa, id as usize, wide, y);
                }
            },
        );
    });
    cpu.tensor(y, like.0, like.1)
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let rows: Vec<usize> = saved.ids.slice::<u32>()?.iter().map(|&id| id as usize).collect();
    let codes = Codes::new(&saved.q.quantized(), saved.layout)?;
    let grads = codes.scale_gradients_of(cpu, &rows, &cpu.read(dy)?)?;
    saved.q.gradients(cpu, grads, need)
}
