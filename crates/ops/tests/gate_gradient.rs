//! The gradient of the log decay `g`: every token within 1e-4 of itself wherever f32 can hold that, on every device.
//!
//! Random problems are compared with the recurrence, token by token in f64: `dg_t = ⟨dM_t, M_t⟩` with `M_t = e^{g_t}
//! S_{t-1}`. Where the terms of that product cancel, no method in f32 is within 1e-4. [`Exact::spread`] measures how
//! much f32 leaves open: the error of the same recurrence in f32, and how far the f64 result moves when each input
//! moves by half a unit in its last place. A token that misses 1e-4 must be within [`SPREADS`] times that.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::cpu::{Cpu, Isa};
use alluvium_core::gpu::Gpu;
use alluvium_core::rng::Rng;
use alluvium_core::{Device, Shape, Tape, Tensor};
use alluvium_ops::{ChunkStates, GatedDeltaArgs, chunk_cumsum, gated_delta_rule};
use std::ops::{Add, AddAssign, Mul, Range, Sub};

/// Bound on the error of each token's gradient relative to itself.
const BOUND: f64 = 1e-4;
/// Bound on the error where the terms cancel, in units of what f32 leaves open.
const SPREADS: f64 = 16.0;
/// Bound on the error of tokens whose gradient later tokens erased on a GPU, relative to the largest gradient of the
/// problem: a chunk subtracts what its tokens erase from sums of that size. A CPU cuts such chunks.
const ERASED: f64 = 1e-6;
/// The largest share of tokens that may miss [`BOUND`].
const SHARE: f64 = 2e-3;
/// Gradients below this are not compared relative to themselves: their factors come near the smallest normal f32.
const TINY: f64 = 1e-30;

/// f32 or f64.
trait Real:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + AddAssign + From<f32> + Into<f64>
{
    fn exp(self) -> Self;
}

impl Real for f32 {
    fn exp(self) -> f32 {
        self.exp()
    }
}

impl Real for f64 {
    fn exp(self) -> f64 {
        self.exp()
    }
}

/// One row of tokens of the gated delta rule, and the gradients of its results.
struct Problem {
    sequences: Vec<Range<usize>>,
    heads: usize,
    v_heads: usize,
    k_width: usize,
    v_width: usize,
    scale: f32,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
    beta: Vec<f32>,
    initial_state: Option<Vec<f32>>,
    d_o: Option<Vec<f32>>,
    d_final_state: Option<Vec<f32>>,
}

/// Which results have a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seed {
    Output,
    FinalState,
    Both,
    /// The outputs of a part of the tokens, as where a loss counts answers alone; each token erases most of what its
    /// key has in the state.
    MaskedOutput,
}

const SEEDS: [Seed; 4] = [Seed::Output, Seed::FinalState, Seed::Both, Seed::MaskedOutput];

/// How strong the decays are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Decays {
    /// One for all tokens, in (-20, 0).
    Constant,
    /// In (-20, 0).
    Mixed,
    /// In (-20, -12), then in (-0.05, 0); again in each chunk.
    StrongThenWeak,
    /// The reverse.
    WeakThenStrong,
    /// In (-16, -12).
    Strong,
    /// In (-0.2, 0).
    Weak,
    /// -15 for one token of eight, -0.01 for the others.
    RarelyStrong,
    /// -15 for the first 32 tokens, then -0.01.
    StrongStart,
}

const DECAYS: [Decays; 8] = [
    Decays::Constant,
    Decays::Mixed,
    Decays::StrongThenWeak,
    Decays::WeakThenStrong,
    Decays::Strong,
    Decays::Weak,
    Decays::RarelyStrong,
    Decays::StrongStart,
];

/// Whether queries, keys, values and their gradients are random, or all 1 in heads of width 1 with beta 0.5.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Heads {
    Random,
    Ones,
}

impl Problem {
    fn random(rng: &mut Rng, tokens: usize, decays: Decays, of: Heads, seed: Seed) -> Self {
        let ones = of == Heads::Ones;
        let (heads, v_heads) = if rng.below(2) == 0 { (1, 2) } else { (2, 2) };
        let [k_width, v_width] = if ones { [1, 1] } else { [[8, 16, 32, 64][rng.below(4)], [8, 16, 32][rng.below(3)]] };
        let cut = 1 + rng.below(tokens - 1);
        let ends = if rng.below(3) == 0 { vec![0, cut, tokens] } else { vec![0, tokens] };
        let sequences: Vec<Range<usize>> = ends.windows(2).map(|ends| ends[0]..ends[1]).collect();
        let n = sequences.len();
        let g = log_decays(rng, tokens, v_heads, decays);
        let mut normal = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal() as f32).collect() };
        let unit = |mut x: Vec<f32>| {
            for row in x.chunks_mut(k_width) {
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                row.iter_mut().for_each(|x| *x /= norm);
            }
            x
        };
        let one = |x: Vec<f32>| if ones { vec![1.0; x.len()] } else { x };
        let keys = tokens * heads * k_width;
        let (q, k) = (one(unit(normal(keys))), one(unit(normal(keys))));
        let (v, d_o) = (one(normal(tokens * v_heads * v_width)), one(normal(tokens * v_heads * v_width)));
        let [initial_state, d_final_state] = [0, 1].map(|_| one(normal(n * v_heads * v_width * k_width)));
        let beta = (0..tokens * v_heads).map(|_| if ones { 0.5 } else { rng.between(0.05, 0.95) as f32 }).collect();
        let mut problem = Problem {
            initial_state: (rng.below(2) == 0).then_some(initial_state),
            d_o: (seed != Seed::FinalState).then_some(d_o),
            d_final_state: matches!(seed, Seed::FinalState | Seed::Both).then_some(d_final_state),
            scale: (k_width as f32).sqrt().recip(),
            sequences,
            heads,
            v_heads,
            k_width,
            v_width,
            q,
            k,
            v,
            g,
            beta,
        };
        if seed == Seed::MaskedOutput {
            problem.mask(rng);
        }
        problem
    }

    /// Takes the gradient of the outputs outside a span of tokens away, and lets tokens erase.
    fn mask(&mut self, rng: &mut Rng) {
        let (row, tokens) = (self.v_heads * self.v_width, self.g.len() / self.v_heads);
        let from = rng.below(tokens);
        let span = from..from + 1 + rng.below(tokens - from);
        for (token, d_o) in self.d_o.iter_mut().flat_map(|d_o| d_o.chunks_mut(row)).enumerate() {
            if !span.contains(&token) {
                d_o.fill(0.0);
            }
        }
        self.beta.iter_mut().for_each(|beta| *beta = rng.between(0.95, 1.0) as f32);
    }

    /// The gradient of `g` by the recurrence, token by token, of inputs that `input` converts.
    fn sequential<F: Real>(&self, mut input: impl FnMut(f32) -> F) -> Vec<F> {
        let mut of = |x: &[f32]| -> Vec<F> { x.iter().map(|&x| input(x)).collect() };
        let (q, k, v, g, beta) = (of(&self.q), of(&self.k), of(&self.v), of(&self.g), of(&self.beta));
        let [initial_state, d_o, d_final_state] =
            [&self.initial_state, &self.d_o, &self.d_final_state].map(|x| x.as_ref().map(|x| of(x)));
        let (zero, scale) = (F::from(0.0), F::from(self.scale));
        let (width, size) = (self.k_width, self.k_width * self.v_width);
        let mut dg = vec![zero; g.len()];
        for (n, tokens) in self.sequences.iter().enumerate() {
            for head in 0..self.v_heads {
                let state = |x: &Option<Vec<F>>| {
                    let at = (n * self.v_heads + head) * size;
                    x.as_ref().map_or(vec![zero; size], |x| x[at..at + size].to_vec())
                };
                let key = |x: &Vec<F>, t: usize| {
                    let key_head = head / (self.v_heads / self.heads);
                    x[(t * self.heads + key_head) * width..][..width].to_vec()
                };
                let gate = |t: usize| t * self.v_heads + head;
                let value = |t: usize| gate(t) * self.v_width..(gate(t) + 1) * self.v_width;
                let (mut s, mut decayed) = (state(&initial_state), Vec::new());
                for t in tokens.clone() {
                    let k = key(&k, t);
                    let decay = g[gate(t)].exp();
                    s.iter_mut().for_each(|s| *s = *s * decay);
                    decayed.push(s.clone());
                    for (s, &v) in s.chunks_exact_mut(width).zip(&v[value(t)]) {
                        let written = beta[gate(t)] * (v - dot(s, &k));
                        s.iter_mut().zip(&k).for_each(|(s, &k)| *s += written * k);
                    }
                }
                let mut ds = state(&d_final_state);
                for (t, m) in tokens.clone().zip(&decayed).rev() {
                    let (q, k, decay) = (key(&q, t), key(&k, t), g[gate(t)].exp());
                    for (row, (ds, m)) in ds.chunks_exact_mut(width).zip(m.chunks_exact(width)).enumerate() {
                        if let Some(d_o) = &d_o {
                            let d_o = scale * d_o[value(t)][row];
                            ds.iter_mut().zip(&q).for_each(|(ds, &q)| *ds += d_o * q);
                        }
                        let erased = beta[gate(t)] * dot(ds, &k);
                        ds.iter_mut().zip(&k).for_each(|(ds, &k)| *ds = *ds - erased * k);
                        dg[gate(t)] += dot(ds, m);
                        ds.iter_mut().for_each(|ds| *ds = *ds * decay);
                    }
                }
            }
        }
        dg
    }

    fn exact(&self, rng: &mut Rng) -> Exact {
        let dg = self.sequential(f64::from);
        let in_f32 = self.sequential(|x| x);
        let mut spread: Vec<f64> = in_f32.iter().zip(&dg).map(|(&x, dg)| (f64::from(x) - dg).abs()).collect();
        for _ in 0..6 {
            let half_unit = 2f64.powi(-24);
            let moved =
                self.sequential(|x| f64::from(x) * if rng.below(2) == 0 { 1.0 + half_unit } else { 1.0 - half_unit });
            for (spread, (moved, dg)) in spread.iter_mut().zip(moved.iter().zip(&dg)) {
                *spread = spread.max((moved - dg).abs());
            }
        }
        Exact { dg, spread }
    }

    /// The gradient of `g` by the operation.
    fn gradient(&self, device: &Device, states: ChunkStates) -> Vec<f32> {
        let (tokens, n) = (self.g.len() / self.v_heads, self.sequences.len());
        let of = |data: &[f32], shape: &[usize]| Tensor::from_slice(data, Shape::new(shape).unwrap(), device).unwrap();
        let (keys, values) = ([1, tokens, self.heads, self.k_width], [1, tokens, self.v_heads, self.v_width]);
        let state = |x: &Vec<f32>| of(x, &[n, self.v_heads, self.v_width, self.k_width]);
        let ends: Vec<u32> = std::iter::once(0).chain(self.sequences.iter().map(|x| x.end as u32)).collect();
        let tape = Tape::new();
        let g = tape.watch(&of(&self.g, &[1, tokens, self.v_heads]));
        let delta = gated_delta_rule(GatedDeltaArgs {
            q: &of(&self.q, &keys),
            k: &of(&self.k, &keys),
            v: &of(&self.v, &values),
            g: &g,
            beta: &of(&self.beta, &[1, tokens, self.v_heads]),
            initial_state: self.initial_state.as_ref().map(state).as_ref(),
            cu_seqlens: (n > 1).then(|| Tensor::from_slice(&ends, [n + 1], device).unwrap()).as_ref(),
            scale: self.scale,
            states,
        })
        .unwrap();
        let (d_o, d_last) = (self.d_o.as_ref().map(|x| of(x, &values)), self.d_final_state.as_ref().map(state));
        let seeds = [(&delta.o, &d_o), (&delta.final_state, &d_last)];
        let seeds: Vec<_> = seeds.into_iter().filter_map(|(y, dy)| dy.as_ref().map(|dy| (y, dy))).collect();
        tape.backward(&seeds).unwrap().get(&g).unwrap().to_floats().unwrap()
    }
}

fn log_decays(rng: &mut Rng, tokens: usize, v_heads: usize, decays: Decays) -> Vec<f32> {
    let constant = rng.between(-20.0, 0.0);
    let cut = 1 + rng.below(tokens.min(64));
    let mut decay = |token: usize| match decays {
        Decays::Constant => constant,
        Decays::Mixed => rng.between(-20.0, 0.0),
        Decays::StrongThenWeak if token % 64 < cut => rng.between(-20.0, -12.0),
        Decays::WeakThenStrong if token % 64 >= cut => rng.between(-20.0, -12.0),
        Decays::StrongThenWeak | Decays::WeakThenStrong => rng.between(-0.05, 0.0),
        Decays::Strong => rng.between(-16.0, -12.0),
        Decays::Weak => rng.between(-0.2, 0.0),
        Decays::RarelyStrong => [-15.0, -0.01][rng.below(8).min(1)],
        Decays::StrongStart => [-15.0, -0.01][usize::from(token >= 32)],
    };
    (0..tokens * v_heads).map(|i| decay(i / v_heads) as f32).collect()
}

fn dot<F: Real>(a: &[F], b: &[F]) -> F {
    a.iter().zip(b).fold(F::from(0.0), |sum, (&a, &b)| sum + a * b)
}

/// The gradient in f64, and how much of it f32 leaves open.
struct Exact {
    dg: Vec<f64>,
    spread: Vec<f64>,
}

/// What is counted of the problems of one kind.
#[derive(Default)]
struct Count {
    tokens: usize,
    missed: usize,
    worst: f64,
    faults: Vec<String>,
}

impl Count {
    /// Counts the tokens of a problem. Errors up to `erased` are allowed beside those of each token.
    fn add(&mut self, got: &[f32], exact: &Exact, erased: f64, name: &str) {
        for (i, (&got, (&want, &spread))) in got.iter().zip(exact.dg.iter().zip(&exact.spread)).enumerate() {
            let (error, own) = ((f64::from(got) - want).abs(), want.abs().max(TINY));
            self.tokens += 1;
            if error <= BOUND * own {
                self.worst = self.worst.max(error / own);
                continue;
            }
            if error <= erased {
                continue;
            }
            self.missed += 1;
            if error.is_nan() || error > SPREADS * spread {
                let times = error / spread;
                self.faults.push(format!("{name}: gate {i} is {:.1e} of itself away, {times:.0} spreads", error / own));
            }
        }
    }
}

fn every_token_is_right(devices: &[Device], of: Heads, rounds: u64) {
    let mut counts: Vec<Count> = devices.iter().map(|_| Count::default()).collect();
    // where all keys are one direction, each token erases all that is there
    let seeds = if of == Heads::Ones { &SEEDS[..3] } else { &SEEDS };
    for (decays, seed) in DECAYS.iter().flat_map(|&x| seeds.iter().map(move |&y| (x, y))) {
        for round in 0..rounds {
            let mut rng = Rng::new(round, &format!("{decays:?} {seed:?} {of:?}"));
            let tokens = [2, 9, 63, 64, 65, 130, 200, 128][round as usize % 8];
            let problem = Problem::random(&mut rng, tokens, decays, of, seed);
            let exact = problem.exact(&mut rng);
            let states = if round % 2 == 0 { ChunkStates::Keep } else { ChunkStates::Recompute };
            for (device, count) in devices.iter().zip(&mut counts) {
                let name = format!("{device:?}, {decays:?}, {seed:?}, {tokens} tokens, round {round}");
                let largest = exact.dg.iter().fold(0.0, |most: f64, dg| most.max(dg.abs()));
                let erased = if seed == Seed::MaskedOutput && !device.is_host() { ERASED * largest } else { 0.0 };
                count.add(&problem.gradient(device, states), &exact, erased, &name);
            }
        }
    }
    for (device, count) in devices.iter().zip(counts) {
        let Count { tokens, missed, worst, faults } = count;
        eprintln!("{device:?}, {of:?}: {missed} of {tokens} cancel beyond f32, the others are within {worst:.1e}");
        assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
        let share = if of == Heads::Ones { 0.0 } else { SHARE };
        assert!(missed as f64 <= share * tokens as f64, "{missed} of {tokens} tokens miss {BOUND}");
    }
}

/// One device for each instruction set.
fn cpus() -> Vec<Device> {
    Isa::available().into_iter().map(|isa| Cpu::builder().threads(2).isa(isa).open().unwrap().into()).collect()
}

/// A GPU, where there is one.
fn gpus() -> Vec<Device> {
    Gpu::builder().poison().open_for_test().unwrap().map(Device::from).into_iter().collect()
}

#[test]
fn every_token_is_right_on_the_cpu() {
    every_token_is_right(&cpus(), Heads::Random, 8);
}

#[test]
fn every_token_of_heads_of_ones_is_right_on_the_cpu() {
    every_token_is_right(&cpus(), Heads::Ones, 8);
}

#[test]
fn every_token_is_right_on_a_gpu() {
    every_token_is_right(&gpus(), Heads::Random, 8);
}

#[test]
fn every_token_of_heads_of_ones_is_right_on_a_gpu() {
    every_token_is_right(&gpus(), Heads::Ones, 8);
}

#[test]
fn the_first_token_without_an_initial_state_has_exactly_zero() {
    for device in cpus().into_iter().chain(gpus()) {
        for (decays, seed) in DECAYS.iter().flat_map(|&x| [Seed::Output, Seed::FinalState].map(|y| (x, y))) {
            let mut problem = Problem::random(&mut Rng::new(1, "first"), 70, decays, Heads::Random, seed);
            problem.initial_state = None;
            let dg = problem.gradient(&device, ChunkStates::Keep);
            for first in problem.sequences.iter().map(|tokens| tokens.start * problem.v_heads) {
                assert_eq!(dg[first..first + problem.v_heads], [0.0, 0.0], "{device:?}, {decays:?}, {seed:?}");
            }
        }
    }
}

/// Terms of size 1 that leave 1e-6 when they are summed: one rounding is left, that of the result.
#[test]
fn sums_of_a_chunk_that_cancel_are_right_to_their_own_size() {
    let mut rng = Rng::new(1, "cancel");
    let (tokens, heads) = (200, 3);
    let mut x = vec![0.0f32; tokens * heads];
    for i in 0..x.len() {
        let pair = if i / heads % 2 == 1 { -x[i - heads] } else { rng.normal() as f32 };
        x[i] = pair * (1.0 + 1e-6 * rng.normal() as f32);
    }
    for device in cpus().into_iter().chain(gpus()) {
        let tape = Tape::new();
        let g = tape.watch(&Tensor::from_slice(&x, [1, tokens, heads], &device).unwrap());
        let sums = chunk_cumsum(&g).unwrap();
        let seed = Tensor::from_slice(&x, [1, tokens, heads], &device).unwrap();
        let dg = tape.backward(&[(&sums, &seed)]).unwrap().get(&g).unwrap().to_floats().unwrap();
        for (got, back) in [(sums.to_floats().unwrap(), false), (dg, true)] {
            for (i, got) in got.into_iter().enumerate() {
                let (token, head) = (i / heads, i % heads);
                let chunk = token / 64 * 64..tokens.min(token / 64 * 64 + 64);
                let summed = if back { token..chunk.end } else { chunk.start..token + 1 };
                let want: f64 = summed.map(|t| f64::from(x[t * heads + head])).sum();
                let error = (f64::from(got) - want).abs() / want.abs().max(TINY);
                assert!(error < 2e-7, "{device:?}, from the end {back}, token {token}: {error:.1e}");
            }
        }
    }
}
