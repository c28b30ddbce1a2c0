//! Reductions of rows, or of everything seen as one row.

use alluvium_core::cpu::{Cpu, Level};
use alluvium_core::{Dims, Result, Shape, Tensor};
use rayon::prelude::*;

/// What a reduction runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// All elements: the result has the shape `[]`.
    All,
    /// The last axis, which the result lacks.
    Last,
}

impl Over {
    /// What is reduced: a tensor without axes is one element along an axis where all elements are reduced.
    pub(crate) fn axis(self, x: &Tensor) -> Result<Tensor> {
        if self == Over::All && x.shape().rank() == 0 { x.reshape([1]) } else { Ok(x.clone()) }
    }

    /// The length of what is reduced to one number, and the shape of the result.
    pub(crate) fn rows(self, dims: &Dims) -> (usize, Shape) {
        match self {
            Over::All => (dims['R'] * dims['D'], Shape::from([])),
            Over::Last => (dims['D'], dims.leading()),
        }
    }
}

/// Numbers whose sum is made in f32; beyond, partial sums are added in f64. Whatever the threads, the parts are these.
const PART: usize = 1 << 10;

/// `factor` times the sum of each row of `width` numbers.
pub(crate) fn sums(cpu: &Cpu, x: &Tensor, width: usize, factor: f64, shape: Shape) -> Result<Tensor> {
    let (xs, level) = (cpu.read(x)?, cpu.level());
    let mut y = cpu.buffer::<f32>(xs.len() / width)?;
    let grain = cpu.grain(y.len(), width);
    cpu.run(|| {
        y.par_chunks_mut(grain).zip(xs.par_chunks(grain * width)).for_each(|(y, x)| {
            for (y, row) in y.iter_mut().zip(x.chunks_exact(width)) {
                *y = (row_sum(level, row) * factor) as f32;
            }
        });
    });
    cpu.tensor(y, shape, x.dtype())
}

/// A long row is shared by the threads; its parts are added in order.
fn row_sum(level: Level, row: &[f32]) -> f64 {
    if row.len() <= 64 * PART {
        return row.chunks(PART).map(|part| f64::from(part_sum(level, part))).sum();
    }
    let parts: Vec<f64> = row.par_chunks(PART).map(|part| f64::from(part_sum(level, part))).collect();
    parts.iter().sum()
}

/// Each row of `width` numbers of the result is `factor` times the row's number in `dy`.
pub(crate) fn spread(cpu: &Cpu, dy: &Tensor, width: usize, factor: f32, shape: Shape) -> Result<Tensor> {
    let dys = cpu.read(dy)?;
    let mut dx = cpu.buffer::<f32>(shape.elements())?;
    let grain = cpu.grain(dx.len(), 1);
    cpu.run(|| {
        dx.par_chunks_mut(grain).enumerate().for_each(|(share, mut dx)| {
            let mut at = share * grain;
            while !dx.is_empty() {
                let end = (at / width + 1) * width;
                let Some(row) = dx.split_off_mut(..dx.len().min(end - at)) else { return };
                row.fill(factor * dys[at / width]);
                at = end;
            }
        });
    });
    cpu.tensor(dx, shape, dy.dtype())
}

/// Where the largest number of each row of `width` is: the first of equal ones. A NaN counts as smaller than any number.
pub(crate) fn largest(cpu: &Cpu, x: &[f32], width: usize) -> Result<alluvium_core::cpu::Buffer<u32>> {
    let level = cpu.level();
    let mut at = cpu.buffer::<u32>(x.len() / width)?;
    let grain = cpu.grain(at.len(), width);
    cpu.run(|| {
        at.par_chunks_mut(grain).zip(x.par_chunks(grain * width)).for_each(|(at, x)| {
            for (at, row) in at.iter_mut().zip(x.chunks_exact(width)) {
                let most = part_max(level, row);
                *at = row.iter().position(|&x| x == most).unwrap_or(0) as u32;
            }
        });
    });
    Ok(at)
}

alluvium_core::simd! {
    fn part_sum<S>(x: &[f32]) -> f32 {
        let mut sums = [S::splat(0.0); 4];
        let mut blocks = x.chunks_exact(4 * S::LANES);
        for block in blocks.by_ref() {
            for (sum, x) in sums.iter_mut().zip(block.chunks_exact(S::LANES)) {
                *sum += S::load(x);
            }
        }
        for (sum, x) in sums.iter_mut().zip(blocks.remainder().chunks(S::LANES)) {
            *sum += S::load_head(x);
        }
        ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum()
    }

    fn part_max<S>(x: &[f32]) -> f32 {
        let mut most = S::splat(f32::NEG_INFINITY);
        let mut lanes = x.chunks_exact(S::LANES);
        for x in lanes.by_ref() {
            // the order matters: `max` gives its argument where either is NaN
            most = S::load(x).max(most);
        }
        lanes.remainder().iter().fold(most.max_lane(), |most, &x| if x > most { x } else { most })
    }
}
