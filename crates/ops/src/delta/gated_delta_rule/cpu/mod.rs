//! One task a sequence and head. The state stays in cache, transposed to `K × V`, so that every product reads its right
//! operand in rows.
//!
//! The inverse is taken without the gate (`A0 = (I + diag(β) K Kᵀ)⁻¹`, strictly below the diagonal), and the values are
//! corrected before it is applied: `V' = A (V − e^G K S)`. The matrices w and u of the usual form never exist.

mod backward;
mod chunk;
mod forward;

pub(super) use backward::backward;
pub(super) use forward::forward;

use super::Grad;
use crate::delta::chunk::{CHUNK, split};
use alluvium_core::Result;
use alluvium_core::cpu::{Cpu, Floats, Isa};
use std::ops::Range;

/// The arguments as f32, and their sizes.
struct Problem<'a> {
    isa: Isa,
    q: Floats<'a>,
    k: Floats<'a>,
    v: Floats<'a>,
    g: Floats<'a>,
    beta: Floats<'a>,
    start: Option<Floats<'a>>,
    sequences: &'a [Range<usize>],
    /// Chunks before each sequence.
    chunks_before: Vec<usize>,
    k_heads: usize,
    v_heads: usize,
    width: [usize; 2],
    scale: f32,
}

impl<'a> Problem<'a> {
    fn new(cpu: &Cpu, args: &'a Grad) -> Result<Self> {
        let (q, v) = (args.q.shape(), args.v.shape());
        let mut chunks = 0;
        let before = |tokens: &Range<usize>| {
            let before = chunks;
            chunks += tokens.len().div_ceil(CHUNK);
            before
        };
        Ok(Problem {
            isa: cpu.isa(),
            q: cpu.read(&args.q)?,
            k: cpu.read(&args.k)?,
            v: cpu.read(&args.v)?,
            g: cpu.read(&args.g)?,
            beta: cpu.read(&args.beta)?,
            start: args.initial_state.as_ref().map(|s| cpu.read(s)).transpose()?,
            chunks_before: args.sequences.iter().map(before).collect(),
            sequences: &args.sequences,
            k_heads: q[2],
            v_heads: v[2],
            width: [q[3], v[3]],
            scale: args.scale,
        })
    }

    /// Numbers in a state.
    fn state(&self) -> usize {
        self.width[0] * self.width[1]
    }

    /// Chunks of all sequences.
    fn chunks(&self) -> usize {
        self.sequences.iter().map(|tokens| tokens.len().div_ceil(CHUNK)).sum()
    }

    /// Chunks of the longest sequence.
    fn most_chunks(&self) -> usize {
        self.sequences.iter().map(|tokens| tokens.len().div_ceil(CHUNK)).max().unwrap_or(0)
    }

    /// Where the states of a sequence and head begin among the kept ones.
    fn kept_at(&self, sequence: usize, head: usize) -> usize {
        let chunks = self.sequences[sequence].len().div_ceil(CHUNK);
        (self.chunks_before[sequence] * self.v_heads + head * chunks) * self.state()
    }

    /// The tokens of a sequence, chunk by chunk.
    fn chunks_of(&self, sequence: usize) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator + use<> {
        split(self.sequences[sequence].clone())
    }
}
