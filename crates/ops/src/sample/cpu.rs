//! One task per row. Whatever the filters, the tokens that remain are a prefix of the order of descending logits: the
//! kernel finds the length of that prefix and sorts no more than it.

use super::{CONTRACT, Sampling};
use alluvium_core::cpu::simd::math::exp;
use alluvium_core::cpu::{Cpu, Isa};
use alluvium_core::{Dims, Error, Result, Tensor};
use rayon::prelude::*;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Tokens whose weights are summed in f32 before the sum is added to an f64 one.
const BLOCK: usize = 4_096;
/// Tokens that are sorted first when a filter by probability does not say how many it needs.
const FIRST_GUESS: usize = 256;

pub(super) fn sample(cpu: &Cpu, logits: &Tensor, sampling: &Sampling, draws: &[f32], dims: &Dims) -> Result<Tensor> {
    let (words, isa) = (dims['V'], cpu.isa());
    let logits = cpu.read(logits)?;
    let mut choices = cpu.buffer::<u32>(dims['B'])?;
    cpu.run(|| {
        let rows = logits.par_chunks_exact(words).zip(draws).zip(&mut choices[..]).enumerate();
        rows.try_for_each(|(row, ((logits, &draw), choice))| {
            *choice = choose(isa, row, logits, sampling, f64::from(draw))?;
            Ok::<_, Error>(())
        })
    })?;
    cpu.wrap(choices, [dims['B']])
}

fn choose(isa: Isa, row: usize, logits: &[f32], sampling: &Sampling, draw: f64) -> Result<u32> {
    let max = largest(isa, logits);
    if max == f32::INFINITY || max.is_nan() {
        return Err(Error::value(CONTRACT.op, format!("row {row} of the logits has NaN or +∞")));
    }
    if max == f32::NEG_INFINITY {
        return Err(Error::value(CONTRACT.op, format!("row {row} of the logits has nothing but −∞")));
    }
    let Sampling { temperature, top_k, top_p, min_p } = *sampling;
    if temperature == 0.0 {
        return Ok(logits.iter().position(|&x| x == max).unwrap_or(0) as u32);
    }
    if top_k == 0 && top_p == 1.0 && min_p == 0.0 {
        return Ok(among_all(isa, logits, max, temperature, draw));
    }
    let mut most = if top_k == 0 { logits.len() } else { top_k.min(logits.len()) };
    if min_p > 0.0 {
        let least = f64::from(min_p).ln();
        let likely = logits.iter().filter(|&&x| f64::from(x) - f64::from(max) >= least).count();
        most = most.min(likely);
    }
    let mut kept = if top_p < 1.0 { likeliest(isa, logits, max, top_p, most) } else { best(logits, most) };
    kept.sort_unstable();
    Ok(among(logits, &kept, max, temperature, draw))
}

/// The fewest tokens whose probability together reaches `top_p`, at most `most`.
fn likeliest(isa: Isa, logits: &[f32], max: f32, top_p: f32, most: usize) -> Vec<u32> {
    let total: f64 = logits.chunks(BLOCK).map(|x| f64::from(sum_of_exp(isa, x, max, 1.0))).sum();
    let enough = f64::from(top_p) * total;
    let mut count = FIRST_GUESS.min(most);
    loop {
        let mut words = best(logits, count);
        let mut sum = 0.0;
        let reached = words.iter().position(|&id| {
            sum += (f64::from(logits[id as usize]) - f64::from(max)).exp();
            sum >= enough
        });
        if let Some(last) = reached {
            words.truncate(last + 1);
            return words;
        }
        if count == most {
            return words;
        }
        count = (8 * count).min(most);
    }
}

/// The `count` tokens with the largest logits in descending order, equals by their ids.
fn best(logits: &[f32], count: usize) -> Vec<u32> {
    let mut heap = BinaryHeap::with_capacity(count + 1);
    let mut least = f32::NEG_INFINITY;
    for (id, &x) in logits.iter().enumerate() {
        if heap.len() == count {
            // of equals the later one is worse
            if x <= least {
                continue;
            }
            heap.pop();
        }
        heap.push(Reverse(rank(x, id as u32)));
        least = heap.peek().map_or(least, |&Reverse(rank)| logits[id_of(rank) as usize]);
    }
    heap.into_sorted_vec().into_iter().map(|Reverse(rank)| id_of(rank)).collect()
}

/// A number that orders tokens: by logit, of equals the lower id above.
fn rank(x: f32, id: u32) -> u64 {
    // −0 is 0; the bits of negative floats fall where the values rise
    let bits = (x + 0.0).to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!id)
}

fn id_of(rank: u64) -> u32 {
    !(rank as u32)
}

/// Draws one of a few tokens, whose ids rise.
fn among(logits: &[f32], kept: &[u32], max: f32, temperature: f32, draw: f64) -> u32 {
    let weight = |id: u32| ((f64::from(logits[id as usize]) - f64::from(max)) / f64::from(temperature)).exp();
    let total: f64 = kept.iter().map(|&id| weight(id)).sum();
    pick(kept.iter().map(|&id| (id, weight(id))), 0.0, draw * total)
}

/// Draws one of all tokens: first the block, then the token.
fn among_all(isa: Isa, logits: &[f32], max: f32, temperature: f32, draw: f64) -> u32 {
    let inv_temperature = temperature.recip();
    let sums: Vec<f64> = logits.chunks(BLOCK).map(|x| f64::from(sum_of_exp(isa, x, max, inv_temperature))).collect();
    let goal = draw * sums.iter().sum::<f64>();
    // rounding may leave the goal unreached: then it is the last block that weighs anything
    let last = sums.iter().rposition(|&sum| sum > 0.0).unwrap_or(0);
    let (mut before, mut block) = (0.0, 0);
    while block < last && before + sums[block] <= goal {
        before += sums[block];
        block += 1;
    }
    let mut weights: Vec<f32> = logits.chunks(BLOCK).nth(block).unwrap_or_default().to_vec();
    exp_of(isa, &mut weights, max, inv_temperature);
    pick(weights.iter().zip(block * BLOCK..).map(|(&w, id)| (id as u32, f64::from(w))), before, goal)
}

/// The first token at which the running sum passes the goal, or the last that weighs anything.
fn pick(words: impl Iterator<Item = (u32, f64)>, mut sum: f64, goal: f64) -> u32 {
    let mut chosen = 0;
    for (id, weight) in words.filter(|&(_, weight)| weight > 0.0) {
        chosen = id;
        sum += weight;
        if sum > goal {
            break;
        }
    }
    chosen
}

alluvium_core::simd! {
    /// The largest; NaN where there is one.
    fn largest<S>(x: &[f32]) -> f32 {
        let mut max = [f32::NEG_INFINITY; 16];
        let mut odd = [false; 16];
        let whole = x.chunks_exact(16);
        for &x in whole.remainder() {
            max[0] = if x > max[0] { x } else { max[0] };
            odd[0] |= x.is_nan();
        }
        for x in whole {
            for i in 0..16 {
                max[i] = if x[i] > max[i] { x[i] } else { max[i] };
                odd[i] |= x[i].is_nan();
            }
        }
        if odd.contains(&true) { f32::NAN } else { max.into_iter().fold(f32::NEG_INFINITY, f32::max) }
    }

    /// `Σ exp((x − max)·inv_temperature)`.
    fn sum_of_exp<S>(x: &[f32], max: f32, inv_temperature: f32) -> f32 {
        let (shift, inv_temperature) = (S::splat(max), S::splat(inv_temperature));
        let whole = x.chunks_exact(S::LANES);
        // lanes past the end are −∞ and weigh nothing
        let mut tail = [f32::NEG_INFINITY; 16];
        tail[..whole.remainder().len()].copy_from_slice(whole.remainder());
        let mut sum = exp((S::load(&tail) - shift) * inv_temperature);
        for x in whole {
            sum += exp((S::load(x) - shift) * inv_temperature);
        }
        sum.sum()
    }

    /// Each becomes `exp((x − max)·inv_temperature)`.
    fn exp_of<S>(x: &mut [f32], max: f32, inv_temperature: f32) {
        for x in x.chunks_mut(S::LANES) {
            exp((S::load_partial(x) - S::splat(max)) * S::splat(inv_temperature)).store_partial(x);
        }
    }
}
