//! The gated delta rule in all its forms gives the same numbers.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{DType, Device, Tape, Tensor};
use alluvium_ops::Fill;
use alluvium_ops::check::{Inputs, compare};
use alluvium_ops::op::Tolerance;
use alluvium_ops::{
    Case, ChunkOutputArgs, ChunkStates, GatedDeltaArgs, GatedDeltaOutput, GatedDeltaStepArgs, chunk_cumsum, chunk_kkt,
    chunk_output, chunk_state, find, gated_delta_rule, gated_delta_step, recompute_w_u, solve_tril,
};

const SCALE: f32 = 0.25;

/// q, k, v, g, beta and an initial state: 150 tokens, 2 key heads, 4 value heads, widths 24 and 20.
fn inputs(sequences: usize) -> [Tensor; 6] {
    let sizes: &'static [(char, usize)] = if sequences == 1 {
        &[('B', 1), ('T', 150), ('H', 2), ('G', 4), ('K', 24), ('V', 20), ('N', 1)]
    } else {
        &[('B', 1), ('T', 150), ('H', 2), ('G', 4), ('K', 24), ('V', 20), ('N', 2)]
    };
    let case = Case { sizes, ..Case::new("forms", &[]) }.filled(&[("g", Fill::Uniform(-0.5, 0.0))]);
    let given = Inputs::new(find("gated_delta_rule").unwrap(), &case, DType::F32, &Device::cpu()).unwrap().tensors;
    ["q", "k", "v", "g", "beta", "initial_state"].map(|name| given[name].clone())
}

fn rule(x: &[Tensor; 6], cu_seqlens: Option<&Tensor>) -> GatedDeltaOutput {
    let [q, k, v, g, beta, state] = x;
    gated_delta_rule(GatedDeltaArgs {
        q,
        k,
        v,
        g,
        beta,
        initial_state: Some(state),
        cu_seqlens,
        scale: SCALE,
        states: ChunkStates::Keep,
    })
    .unwrap()
}

/// Tokens `from .. to` of every argument but the state.
fn tokens(x: &[Tensor; 6], from: usize, to: usize, state: &Tensor) -> [Tensor; 6] {
    std::array::from_fn(|i| match i {
        5 => state.clone(),
        _ => {
            let shape = x[i].shape();
            let flat = x[i].reshape(alluvium_core::Shape::new(&shape[1..]).unwrap()).unwrap();
            flat.rows(from, to - from).unwrap().reshape(shape.with(1, to - from)).unwrap()
        }
    })
}

fn near(name: &str, got: &[f32], want: &[f32]) {
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let gap = compare(&wide(got), &wide(want), 0.0);
    assert!(gap.within(Tolerance { relative: 1e-5, worst: 1e-4, matrix_units: 0.0 }), "{name}: {gap}");
}

#[test]
fn chunks_give_what_token_by_token_gives() {
    let x = inputs(1);
    let whole = rule(&x, None);
    let (mut state, mut o) = (x[5].clone(), Vec::new());
    for i in 0..150 {
        let [q, k, v, g, beta, _] = tokens(&x, i, i + 1, &state);
        let one =
            |x: &Tensor| x.reshape(alluvium_core::Shape::new(&[&[1], &x.shape()[2..]].concat()).unwrap()).unwrap();
        let [q, k, v, g, beta] = [&q, &k, &v, &g, &beta].map(one);
        let (q, k, v, g, beta) = (&q, &k, &v, &g, &beta);
        let delta = gated_delta_step(GatedDeltaStepArgs { q, k, v, g, beta, state, scale: SCALE }).unwrap();
        o.extend(delta.o.to_floats().unwrap());
        state = delta.final_state;
    }
    near("o", &whole.o.to_floats().unwrap(), &o);
    near("state", &whole.final_state.to_floats().unwrap(), &state.to_floats().unwrap());
}

#[test]
fn a_sequence_in_two_parts_with_its_state_carried_over_is_the_whole() {
    let x = inputs(1);
    let whole = rule(&x, None);
    let first = rule(&tokens(&x, 0, 77, &x[5]), None);
    let second = rule(&tokens(&x, 77, 150, &first.final_state), None);
    let both = [first.o.to_floats().unwrap(), second.o.to_floats().unwrap()].concat();
    near("o", &both, &whole.o.to_floats().unwrap());
    near("state", &second.final_state.to_floats().unwrap(), &whole.final_state.to_floats().unwrap());
}

#[test]
fn packed_sequences_are_the_same_bits_as_separate_ones() {
    let x = inputs(2);
    let cu = Tensor::from_slice(&[0u32, 65, 150], [3], &Device::cpu()).unwrap();
    let packed = rule(&x, Some(&cu));
    let parts = [(0, 65, 0), (65, 150, 1)].map(|(from, to, n)| {
        let delta = rule(&tokens(&x, from, to, &x[5].rows(n, 1).unwrap()), None);
        [delta.o.to_floats().unwrap(), delta.final_state.to_floats().unwrap()]
    });
    assert_eq!(packed.o.to_floats().unwrap(), [parts[0][0].clone(), parts[1][0].clone()].concat());
    assert_eq!(packed.final_state.to_floats().unwrap(), [parts[0][1].clone(), parts[1][1].clone()].concat());
}

fn by_stages([q, k, v, g, beta, state]: &[Tensor; 6]) -> GatedDeltaOutput {
    let g_cum = chunk_cumsum(g).unwrap();
    let a = solve_tril(&chunk_kkt(k, beta, &g_cum).unwrap()).unwrap();
    let wu = recompute_w_u(k, v, beta, &g_cum, &a).unwrap();
    let states = chunk_state(k, &wu.w, &wu.u, &g_cum, Some(state)).unwrap();
    let (v_new, h) = (&states.v_new, &states.h);
    let o = chunk_output(ChunkOutputArgs { q, k, v_new, h, g_cum: &g_cum, scale: SCALE }).unwrap();
    GatedDeltaOutput { o, final_state: states.final_state }
}

#[test]
fn the_stages_together_are_the_rule_in_values_and_gradients() {
    let x = inputs(1);
    let forms: [fn(&[Tensor; 6]) -> GatedDeltaOutput; 2] = [by_stages, |x| rule(x, None)];
    let results = forms.map(|form| {
        let tape = Tape::new();
        let x = x.each_ref().map(|x| tape.watch(x));
        let delta = form(&x);
        let (o, last) = (delta.o.detach(), delta.final_state.detach());
        let grads = tape.backward(&[(&delta.o, &o), (&delta.final_state, &last)]).unwrap();
        let mut all = vec![o.to_floats().unwrap(), last.to_floats().unwrap()];
        all.extend(x.iter().map(|x| grads.get(x).unwrap().to_floats().unwrap()));
        all
    });
    let names = ["o", "state", "dq", "dk", "dv", "dg", "dbeta", "dstate"];
    for ((name, got), want) in names.iter().zip(&results[0]).zip(&results[1]) {
        near(name, got, want);
    }
}
