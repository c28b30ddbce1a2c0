//! The gradient of the log decay where the decay is strong: every token within 1e-4 of itself.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::gpu::{Gpu, adapters};
use alluvium_core::{DType, Device, Tape, Tensor};
use alluvium_ops::check::{Inputs, compare};
use alluvium_ops::op::{Array, Given, Gradient};
use alluvium_ops::{Case, ChunkStates, GatedDeltaArgs, find, gated_delta_rule};

/// The gate at a pair of indices.
type Gates = fn(usize, usize) -> f32;

const SCALE: f64 = 0.25;

/// Which results have a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seed {
    Output,
    FinalState,
    Both,
}

/// Bound on the error of a token's gradient relative to itself, or to a hundredth of the sum of the magnitudes of its
/// `K · V` terms where these cancel by chance.
const BOUND: f64 = 1e-4;
/// The same where a chunk's later tokens erase most of the state's gradient: a chunk subtracts what they erase.
const ERASED: f64 = 1e-3;

/// The worst error of a token's `dg`, in the measure of [`BOUND`], for log decays `g(token, head)`.
fn worst(device: &Device, tokens: usize, g: impl Fn(usize, usize) -> f32, seed: Seed, states: ChunkStates) -> f64 {
    let sizes: &'static [(char, usize)] =
        vec![('B', 1), ('T', tokens), ('H', 2), ('G', 4), ('K', 32), ('V', 32), ('N', 1)].leak();
    let op = find("gated_delta_rule").unwrap();
    let case = Case::new("gate", sizes).without(&["cu_seqlens"]).options(&[("scale", SCALE)]);
    let Inputs { mut tensors, mut arrays, .. } = Inputs::new(op, &case, DType::F32, device).unwrap();
    let values: Vec<f32> = (0..tokens * 4).map(|i| g(i / 4, i % 4)).collect();
    let place = tensors.args.iter().position(|(name, _)| *name == "g").unwrap();
    tensors.args[place].1 = Some(Tensor::from_slice(&values, [1, tokens, 4], device).unwrap());
    arrays.args[place].1 = Some(Array::new([1, tokens, 4], values.iter().map(|&x| f64::from(x)).collect()));

    let mut seeds = (op.reference)(&arrays);
    let silent = |x: &mut Array| x.data.fill(0.0);
    match seed {
        Seed::Output => silent(&mut seeds[1]),
        Seed::FinalState => silent(&mut seeds[0]),
        Seed::Both => {}
    }
    // what f32 holds of the seeds
    seeds.iter_mut().for_each(|x| *x = x.map(|x| f64::from(x as f32)));
    let Gradient::Of(gradient) = op.gradient else { panic!("no gradient") };
    let want = gradient(&arrays, &seeds)[place].clone().unwrap();

    let tape = Tape::new();
    let watched = tape.watch(&tensors["g"]);
    let delta = gated_delta_rule(GatedDeltaArgs {
        q: &tensors["q"],
        k: &tensors["k"],
        v: &tensors["v"],
        g: &watched,
        beta: &tensors["beta"],
        initial_state: tensors.get("initial_state"),
        cu_seqlens: None,
        scale: SCALE as f32,
        states,
    })
    .unwrap();
    let f32s = |x: &Array| {
        let data: Vec<f32> = x.data.iter().map(|&x| x as f32).collect();
        Tensor::from_slice(&data, alluvium_core::Shape::new(&x.shape).unwrap(), device).unwrap()
    };
    let (d_o, d_last) = (f32s(&seeds[0]), f32s(&seeds[1]));
    let pairs: &[(&Tensor, &Tensor)] = match seed {
        Seed::Output => &[(&delta.o, &d_o)],
        Seed::FinalState => &[(&delta.final_state, &d_last)],
        Seed::Both => &[(&delta.o, &d_o), (&delta.final_state, &d_last)],
    };
    let got = tape.backward(pairs).unwrap().of(&watched).unwrap().to_floats().unwrap();
    let terms = magnitudes(&arrays, &seeds);
    let error =
        |i: usize| (f64::from(got[i]) - want.data[i]).abs() / want.data[i].abs().max(1e-2 * terms[i]).max(1e-30);
    (0..got.len()).map(error).fold(0.0, f64::max)
}

/// `Σ |dM| |M|` of each token and value head, with `M = e^g S` the decayed state and `dM` its gradient.
fn magnitudes(x: &Given<Array>, seeds: &[Array]) -> Vec<f64> {
    let (k_width, v_width, tokens) = (32, 32, x["g"].shape[1]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut terms = vec![0.0; tokens * 4];
    for head in 0..4 {
        let row = |name: &str, t: usize| {
            let (heads, head) = if name == "v" { (4, head) } else { (2, head / 2) };
            &x[name].data[(t * heads + head) * 32..][..32]
        };
        let gate = |name: &str, t: usize| x[name].data[t * 4 + head];
        let size = k_width * v_width;
        let mut state = x["initial_state"].data[head * size..][..size].to_vec();
        let mut decayed = Vec::new();
        for t in 0..tokens {
            state.iter_mut().for_each(|s| *s *= gate("g", t).exp());
            decayed.push(state.clone());
            for (row_of_state, v) in state.chunks_exact_mut(k_width).zip(row("v", t)) {
                let residual = gate("beta", t) * (v - dot(row_of_state, row("k", t)));
                row_of_state.iter_mut().zip(row("k", t)).for_each(|(s, k)| *s += residual * k);
            }
        }
        let mut ds = seeds[1].data[head * size..][..size].to_vec();
        for t in (0..tokens).rev() {
            let d_o = &seeds[0].data[(t * 4 + head) * v_width..][..v_width];
            for ((ds, m), d_o) in ds.chunks_exact_mut(k_width).zip(decayed[t].chunks_exact(k_width)).zip(d_o) {
                ds.iter_mut().zip(row("q", t)).for_each(|(ds, q)| *ds += SCALE * d_o * q);
                let residual = gate("beta", t) * dot(ds, row("k", t));
                ds.iter_mut().zip(row("k", t)).for_each(|(ds, k)| *ds -= residual * k);
                terms[t * 4 + head] += ds.iter().zip(m).map(|(ds, m)| (ds * m).abs()).sum::<f64>();
                ds.iter_mut().for_each(|ds| *ds *= gate("g", t).exp());
            }
        }
    }
    terms
}

fn every_token_is_right(device: &Device) {
    let gates: [(&str, Gates); 8] = [
        ("-1", |_, _| -1.0),
        ("-10", |_, _| -10.0),
        ("-12", |_, _| -12.0),
        ("-15", |_, _| -15.0),
        ("-20", |_, _| -20.0),
        ("heads from weak to strong", |_, head| [-0.1, -3.0, -8.0, -16.0][head]),
        ("strong tokens before weak ones", |token, _| if token < 32 { -15.0 } else { -0.01 }),
        ("all strengths", |token, head| ((token * 7 + head * 3) % 41) as f32 / -2.05),
    ];
    let mut faults = Vec::new();
    for (name, g) in gates {
        for seed in [Seed::Output, Seed::FinalState, Seed::Both] {
            for (tokens, states) in [(2, ChunkStates::Keep), (64, ChunkStates::Keep), (130, ChunkStates::Recompute)] {
                let worst = worst(device, tokens, g, seed, states);
                let erased = seed == Seed::FinalState && g(tokens - 1, 0) > -1.0;
                if worst.is_nan() || worst > if erased { ERASED } else { BOUND } {
                    faults.push(format!("g {name}, {tokens} tokens, {seed:?}: {worst:.1e}"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} faults on {device:?}:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn every_token_is_right_on_the_cpu() {
    every_token_is_right(&Device::cpu());
}

#[test]
fn every_token_is_right_on_a_gpu() {
    if adapters().is_empty() {
        eprintln!("skipped: no GPU was found");
        return;
    }
    every_token_is_right(&Gpu::builder().poison().open().unwrap().into());
}

/// `dg` of one head of width 1 with q = k = v = 1, beta = 0.5 and no initial state, token by token in f64. No terms cancel.
fn of_ones(g: &[f64], d_o: f64, d_last: f64) -> Vec<f64> {
    let beta = 0.5;
    let (mut s, mut decayed) = (0.0, Vec::new());
    for g in g {
        decayed.push(g.exp() * s);
        s = g.exp() * s + beta * (1.0 - g.exp() * s);
    }
    let (mut ds, mut dg) = (d_last, vec![0.0; g.len()]);
    for i in (0..g.len()).rev() {
        ds += d_o;
        let dm = ds * (1.0 - beta);
        dg[i] = dm * decayed[i];
        ds = g[i].exp() * dm;
    }
    dg
}

/// The first token decays nothing: exactly 0. With these keys each token erases half of the state's gradient, which cancels
/// in a chunk's sums, so weak decays are looked at with a gradient of every output.
#[test]
fn a_head_of_ones_is_right_in_every_token_and_zero_in_the_first() {
    let mut devices = vec![Device::cpu()];
    if !adapters().is_empty() {
        devices.push(Gpu::builder().poison().open().unwrap().into());
    }
    let constant = [-0.01f32, -1.0, -5.0, -8.0, -10.0, -12.0, -15.0, -19.9].map(|g| vec![g; 200]);
    let mixed = (0..200).map(|i| if i % 70 < 32 { -15.0 } else { -0.01 }).collect();
    let all = (0..200).map(|i| -((i * 7 % 41) as f32) / 2.05).collect();
    let mut faults = Vec::new();
    for gates in constant.iter().chain([&mixed, &all]) {
        for (tokens, last) in [2, 64, 65, 200].into_iter().flat_map(|tokens| [(tokens, false), (tokens, true)]) {
            let gates = &gates[..tokens];
            if last && gates.iter().any(|&g| g > -8.0) {
                continue;
            }
            let (d_o, d_last) = if last { (0.0, 1.0) } else { (1.0, 0.0) };
            let want = of_ones(&gates.iter().map(|&g| f64::from(g)).collect::<Vec<_>>(), d_o, d_last);
            for device in &devices {
                let got = gradient_of_ones(device, gates, last);
                let each = compare(&got[1..], &want[1..], 0.0).each;
                if got[0] != 0.0 || each > if last { ERASED } else { BOUND } {
                    faults.push(format!("{device:?}: g {:?}.., {tokens} tokens, last {last}: {each:.1e}", &gates[..2]));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn gradient_of_ones(device: &Device, gates: &[f32], last: bool) -> Vec<f64> {
    let tape = Tape::new();
    let tokens = gates.len();
    let of = |data: &[f32], shape: &[usize]| {
        Tensor::from_slice(data, alluvium_core::Shape::new(shape).unwrap(), device).unwrap()
    };
    let x = of(&vec![1.0; tokens], &[1, tokens, 1, 1]);
    let gate = tape.watch(&of(gates, &[1, tokens, 1]));
    let delta = gated_delta_rule(GatedDeltaArgs {
        q: &x,
        k: &x,
        v: &x,
        g: &gate,
        beta: &of(&vec![0.5; tokens], &[1, tokens, 1]),
        initial_state: None,
        cu_seqlens: None,
        scale: 1.0,
        states: ChunkStates::Keep,
    })
    .unwrap();
    let y = if last { &delta.final_state } else { &delta.o };
    let grads = tape.backward(&[(y, &of(&vec![1.0; y.elements()], &y.shape()))]).unwrap();
    grads.of(&gate).unwrap().to_floats().unwrap().into_iter().map(f64::from).collect()
}
