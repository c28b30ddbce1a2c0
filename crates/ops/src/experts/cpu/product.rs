//! One product an expert: with its weights as they are stored where few rows chose it, a general one where many did.

use super::Choices;
use crate::linalg::weights::{FEW_ROWS, Weights, few, many, multiply_back};
use alluvium_core::Result;
use alluvium_core::cpu::{Buffer, Cpu};
use rayon::prelude::*;
use std::ops::Range;

/// One expert's work: itself, its places in the order, and what is written there.
type Job<'a> = (usize, Range<usize>, &'a mut [f32]);

/// Runs `work` for every expert that was chosen, side by side, on its rows of `out`; `width` values are a row.
fn each(
    cpu: &Cpu,
    choices: &Choices,
    mut out: &mut [f32],
    width: usize,
    work: impl Fn(Job<'_>) -> Result<()> + Sync,
) -> Result<()> {
    let mut jobs: Vec<Job<'_>> = Vec::with_capacity(choices.jobs.len());
    for (expert, places) in &choices.jobs {
        let (own, rest) = out.split_at_mut(places.len() * width);
        out = rest;
        jobs.push((*expert, places.clone(), own));
    }
    cpu.run(|| jobs.into_par_iter().try_for_each(&work))
}

/// Rows of `from`, picked, one after the other.
fn gather(from: &[f32], width: usize, picks: impl Iterator<Item = usize>, to: &mut [f32]) {
    for (pick, to) in picks.zip(to.chunks_exact_mut(width)) {
        to.copy_from_slice(&from[pick * width..][..width]);
    }
}

/// Rows in the choices' own order from rows in that of the experts.
fn unsorted(cpu: &Cpu, choices: &Choices, sorted: &[f32], width: usize) -> Result<Buffer<f32>> {
    let mut places = vec![0; choices.order.len()];
    choices.order.iter().enumerate().for_each(|(place, &choice)| places[choice] = place);
    let mut to = cpu.buffer(sorted.len())?;
    let grain = cpu.grain(places.len(), width);
    cpu.run(|| {
        to.par_chunks_mut(grain * width)
            .zip(places.par_chunks(grain))
            .for_each(|(to, places)| gather(sorted, width, places.iter().copied(), to));
    });
    Ok(to)
}

/// `y[choice] = x · w[expert]ᵀ` for all choices; an expert has `outer` rows of the weights.
pub(crate) fn forward<W: Weights>(
    cpu: &Cpu,
    weights: &W,
    outer: usize,
    choices: &Choices,
    x: &[f32],
) -> Result<Buffer<f32>> {
    let inner = weights.inner();
    let ready = match choices.jobs.iter().any(|(_, places)| places.len() <= FEW_ROWS) {
        true => Some(weights.ready(cpu, x)?),
        false => None,
    };
    let mut sorted = cpu.buffer(choices.order.len() * outer)?;
    each(cpu, choices, &mut sorted, outer, |(expert, places, y)| {
        let own = expert * outer..(expert + 1) * outer;
        match &ready {
            Some(ready) if places.len() <= FEW_ROWS => {
                let picks: Vec<usize> = places.map(|place| choices.row(place)).collect();
                few(cpu, weights, own, (ready, &picks), y)
            }
            _ => {
                let mut rows = cpu.buffer(places.len() * inner)?;
                gather(x, inner, places.map(|place| choices.row(place)), &mut rows);
                many(cpu, weights, own, &rows, y)
            }
        }
    })?;
    unsorted(cpu, choices, &sorted, outer)
}

/// `dx`: what the choices' gradients `dy` mean for each row of `x`, summed over those that share it, in their order.
pub(crate) fn back<W: Weights>(
    cpu: &Cpu,
    weights: &W,
    outer: usize,
    choices: &Choices,
    dy: &[f32],
) -> Result<Buffer<f32>> {
    let inner = weights.inner();
    let mut sorted = cpu.buffer(choices.order.len() * inner)?;
    each(cpu, choices, &mut sorted, inner, |(expert, places, dx)| {
        let mut rows = cpu.buffer(places.len() * outer)?;
        gather(dy, outer, choices.order[places].iter().copied(), &mut rows);
        multiply_back(cpu, weights, expert * outer..(expert + 1) * outer, &rows, dx)
    })?;
    let mut dx = unsorted(cpu, choices, &sorted, inner)?;
    if choices.shared == 1 {
        return Ok(dx);
    }
    let mut sums = cpu.buffer(dx.len() / choices.shared)?;
    let grain = cpu.grain(sums.len() / inner, inner * choices.shared);
    cpu.run(|| {
        let tokens = dx.par_chunks_mut(inner * choices.shared).zip(sums.par_chunks_mut(inner));
        tokens.with_min_len(grain).for_each(|(dx, sum)| {
            sum.fill(0.0);
            for dx in dx.chunks_exact(inner) {
                sum.iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx);
            }
        });
    });
    Ok(sums)
}

/// The rows of `x` and of `dy` that belong to some places, as the gradients of an expert's weights need them.
pub(crate) fn sorted_rows(
    cpu: &Cpu,
    choices: &Choices,
    places: &Range<usize>,
    [x, dy]: [(&[f32], usize); 2],
) -> Result<[Buffer<f32>; 2]> {
    let (mut xs, mut dys) = (cpu.buffer(places.len() * x.1)?, cpu.buffer(places.len() * dy.1)?);
    gather(x.0, x.1, places.clone().map(|place| choices.row(place)), &mut xs);
    gather(dy.0, dy.1, choices.order[places.clone()].iter().copied(), &mut dys);
    Ok([xs, dys])
}
