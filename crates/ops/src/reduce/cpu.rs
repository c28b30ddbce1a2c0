//! Reductions on the CPU: rows go to threads, and a long row is shared by all threads.

use super::From;
use alluvium_core::cpu::{Buffer, Cpu, Isa};
use alluvium_core::{Result, Shape, Tensor};
use rayon::prelude::*;

/// Elements that are summed in f32; the sums of such parts are added in f64. The parts do not depend on the threads.
const PART: usize = 1 << 10;

/// `factor` times the sum of each row of `width` elements.
pub(super) fn sums(cpu: &Cpu, x: &Tensor, width: usize, factor: f64, shape: Shape) -> Result<Tensor> {
    let (xs, isa) = (cpu.read(x)?, cpu.isa());
    let mut y = cpu.buffer::<f32>(xs.len() / width)?;
    let grain = cpu.grain(y.len(), width);
    cpu.run(|| {
        y.par_chunks_mut(grain).zip(xs.par_chunks(grain * width)).for_each(|(y, x)| {
            for (y, row) in y.iter_mut().zip(x.chunks_exact(width)) {
                *y = (row_sum(isa, row) * factor) as f32;
            }
        });
    });
    cpu.tensor(y, shape, x.dtype())
}

/// A long row is shared by the threads; its parts are added in order.
fn row_sum(isa: Isa, row: &[f32]) -> f64 {
    if row.len() <= 64 * PART {
        return row.chunks(PART).map(|part| f64::from(part_sum(isa, part))).sum();
    }
    let parts: Vec<f64> = row.par_chunks(PART).map(|part| f64::from(part_sum(isa, part))).collect();
    parts.iter().sum()
}

/// Each row of `width` elements of the result is `factor` times the row's element in `dy`.
pub(super) fn spread(cpu: &Cpu, dy: &Tensor, width: usize, factor: f32, shape: Shape) -> Result<Tensor> {
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

/// The index of the largest element of each row of `width`: the first of equal ones. A NaN counts as smaller than any.
pub(super) fn argmax(cpu: &Cpu, x: &[f32], width: usize) -> Result<Buffer<u32>> {
    let isa = cpu.isa();
    let mut at = cpu.buffer::<u32>(x.len() / width)?;
    let grain = cpu.grain(at.len(), width);
    cpu.run(|| {
        at.par_chunks_mut(grain).zip(x.par_chunks(grain * width)).for_each(|(at, x)| {
            for (at, row) in at.iter_mut().zip(x.chunks_exact(width)) {
                let max = part_max(isa, row);
                *at = row.iter().position(|&x| x == max).unwrap_or(0) as u32;
            }
        });
    });
    Ok(at)
}

/// The largest element of each row, and its index.
pub(super) fn max(cpu: &Cpu, x: &Tensor, width: usize, shape: Shape) -> Result<(Tensor, Tensor)> {
    let xs = cpu.read(x)?;
    let at = argmax(cpu, &xs, width)?;
    let mut y = cpu.buffer::<f32>(at.len())?;
    for ((y, row), &at) in y.iter_mut().zip(xs.chunks_exact(width)).zip(at.iter()) {
        *y = row[at as usize];
    }
    Ok((cpu.tensor(y, shape, x.dtype())?, cpu.wrap(at, shape)?))
}

/// The gradient of [`max`]: `dy` at the index of each row, 0 elsewhere.
pub(super) fn max_backward(cpu: &Cpu, dy: &Tensor, at: &Tensor, width: usize, shape: Shape) -> Result<Tensor> {
    let dys = cpu.read(dy)?;
    let mut dx = cpu.zeros::<f32>(shape.elements())?;
    for ((dx, dy), &at) in dx.chunks_exact_mut(width).zip(dys.iter()).zip(at.slice::<u32>()?) {
        dx[at as usize] = *dy;
    }
    cpu.tensor(dx, shape, dy.dtype())
}

/// Running sums of the rows, from one end.
pub(super) fn running(cpu: &Cpu, x: &Tensor, from: From) -> Result<Tensor> {
    match from {
        From::Start => rows(cpu, x, |x, y| running_row(x.iter().zip(y))),
        From::End => rows(cpu, x, |x, y| running_row(x.iter().zip(y).rev())),
    }
}

fn running_row<'a>(pairs: impl Iterator<Item = (&'a f32, &'a mut f32)>) {
    let mut sum = 0.0;
    for (x, y) in pairs {
        sum += f64::from(*x);
        *y = sum as f32;
    }
}

fn rows(cpu: &Cpu, x: &Tensor, row: impl Fn(&[f32], &mut [f32]) + Sync) -> Result<Tensor> {
    let (xs, width) = (cpu.read(x)?, x.shape().last());
    let mut y = cpu.buffer::<f32>(xs.len())?;
    let grain = cpu.grain(xs.len() / width, width) * width;
    cpu.run(|| {
        y.par_chunks_mut(grain).zip(xs.par_chunks(grain)).for_each(|(y, x)| {
            y.chunks_exact_mut(width).zip(x.chunks_exact(width)).for_each(|(y, x)| row(x, y));
        });
    });
    cpu.tensor(y, x.shape(), x.dtype())
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
            *sum += S::load_partial(x);
        }
        ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum()
    }

    fn part_max<S>(x: &[f32]) -> f32 {
        let mut max = S::splat(f32::NEG_INFINITY);
        let mut lanes = x.chunks_exact(S::LANES);
        for x in lanes.by_ref() {
            // the order matters: `max` gives its argument where either is NaN
            max = S::load(x).max(max);
        }
        lanes.remainder().iter().fold(max.max_lane(), |max, &x| if x > max { x } else { max })
    }
}
