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

/// The sums of a chunk, in f64: a sum that cancels is right to its own size.
fn one(to: &mut [f32], from: &[f32], heads: usize, order: Order) {
    let mut sums = vec![0.0f64; heads];
    let tokens = to.len() / heads;
    for step in 0..tokens {
        let token = match order {
            Order::Forward => step,
            Order::Backward => tokens - 1 - step,
        };
        let span = token * heads..(token + 1) * heads;
        for ((to, from), sum) in to[span.clone()].iter_mut().zip(&from[span]).zip(&mut sums) {
            *sum += f64::from(*from);
            *to = *sum as f32;
        }
    }
}
