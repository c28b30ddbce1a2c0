//! Threads over chunks; a token's heads lie side by side and are summed together.

use crate::delta::chunk::CHUNK;
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Result, Tensor};
use rayon::prelude::*;

/// From which end of a chunk is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Forward,
    Backward,
}

pub(super) fn sums(cpu: &Cpu, g: &Tensor, [tokens, heads]: [usize; 2], order: Order) -> Result<Tensor> {
    let from = cpu.read(g)?;
    let mut to = cpu.buffer::<f32>(from.len())?;
    let (row, chunk) = (tokens * heads, CHUNK * heads);
    cpu.run(|| {
        to.par_chunks_mut(row).zip(from.par_chunks(row)).for_each(|(to, from)| {
            to.par_chunks_mut(chunk).zip(from.par_chunks(chunk)).for_each(|(to, from)| one(to, from, heads, order));
        });
    });
    cpu.tensor(to, g.shape(), DType::F32)
}

fn one(to: &mut [f32], from: &[f32], heads: usize, order: Order) {
    to.copy_from_slice(from);
    let tokens = to.len() / heads;
    for i in 1..tokens {
        let (this, last) = match order {
            Order::Forward => (i, i - 1),
            Order::Backward => (tokens - 1 - i, tokens - i),
        };
        for head in 0..heads {
            to[this * heads + head] += to[last * heads + head];
        }
    }
}
