//! Block by block through f32, so that every pair of dtypes is one pass.

use crate::common::stored::{Stored, by_storage};
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Result, Tensor};
use rayon::prelude::*;

/// Numbers that are widened and rounded at a time.
const BLOCK: usize = 1024;

pub(super) fn forward(cpu: &Cpu, x: &Tensor, dtype: DType) -> Result<Tensor> {
    by_storage!(x.dtype(), From => by_storage!(dtype, To => convert::<From, To>(cpu, x)))
}

fn convert<From: Stored, To: Stored>(cpu: &Cpu, x: &Tensor) -> Result<Tensor> {
    let from = x.slice::<From>()?;
    let mut to = cpu.buffer::<To>(from.len())?;
    let grain = cpu.grain(from.len(), 1);
    cpu.run(|| {
        to.par_chunks_mut(grain).zip(from.par_chunks(grain)).for_each(|(to, from)| {
            let (mut read, mut write) = ([0.0; BLOCK], [0.0; BLOCK]);
            for (to, from) in to.chunks_mut(BLOCK).zip(from.chunks(BLOCK)) {
                let numbers = From::widen(from, &mut read);
                To::open(to, &mut write).copy_from_slice(numbers);
                To::close(to, &write);
            }
        });
    });
    cpu.wrap(to, x.shape())
}
