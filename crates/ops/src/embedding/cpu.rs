//! Threads over rows to gather; over ranges of the table to add, so that no two threads share a sum.

use super::{CONTRACT, Grad};
use crate::common::ids::below;
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Dims, Element, Error, Result, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, table: &Tensor, ids: &Tensor, dims: &Dims) -> Result<Tensor> {
    let each = below(CONTRACT.op, "ids", ids, ('V', dims['V']))?;
    match table.dtype() {
        DType::F32 => gather::<f32>(cpu, table, each, dims),
        DType::F16 => gather::<f16>(cpu, table, each, dims),
        DType::BF16 => gather::<bf16>(cpu, table, each, dims),
        other => Err(Error::value("embedding", format!("a table of {other} has no kernel"))),
    }
}

fn gather<T: Element>(cpu: &Cpu, table: &Tensor, ids: &[u32], dims: &Dims) -> Result<Tensor> {
    let (width, table) = (dims['D'], table.slice::<T>()?);
    let mut y = cpu.buffer::<T>(ids.len() * width)?;
    let grain = cpu.grain(ids.len(), width);
    cpu.run(|| {
        y.par_chunks_mut(grain * width).zip(ids.par_chunks(grain)).for_each(|(y, ids)| {
            for (y, &id) in y.chunks_exact_mut(width).zip(ids) {
                y.copy_from_slice(&table[id as usize * width..][..width]);
            }
        });
    });
    cpu.wrap(y, dims.shape("R.. D")?)
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor) -> Result<Tensor> {
    let (rows, width, isa) = (saved.shape[0], saved.shape[1], cpu.isa());
    let (ids, dys) = (saved.ids.slice::<u32>()?, cpu.read(dy)?);
    // the sort is stable: places of the same id stay in order, and with them the bits of the sums
    let mut places: Vec<usize> = (0..ids.len()).collect();
    places.sort_by_key(|&place| ids[place]);
    let mut to = cpu.buffer::<f32>(rows * width)?;
    let grain = cpu.grain(rows, width);
    cpu.run(|| {
        to.par_chunks_mut(grain * width).enumerate().for_each(|(i, to)| {
            to.fill(0.0);
            let first = i * grain;
            let from = places.partition_point(|&place| (ids[place] as usize) < first);
            let end = places.partition_point(|&place| (ids[place] as usize) < first + grain);
            for &place in &places[from..end] {
                let row = (ids[place] as usize - first) * width;
                add(isa, &dys[place * width..][..width], &mut to[row..][..width]);
            }
        });
    });
    cpu.tensor(to, saved.shape, saved.dtype)
}

alluvium_core::simd! {
    /// `sum += x`.
    fn add<S>(x: &[f32], sum: &mut [f32]) {
        let whole = x.len() - x.len() % S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            (S::load(&x[i..]) + S::load(&sum[i..])).store(&mut sum[i..]);
        }
        (S::load_partial(&x[whole..]) + S::load_partial(&sum[whole..])).store_partial(&mut sum[whole..]);
    }
}
