//! The same numbers as MLX: results and gradients against files that mlx and mlx-lm wrote (`fixtures/README.md`).
//!
//! The manifest gives the cases, and each test ends with what it leaves out and why, so that no case is forgotten.
//! Another folder like `fixtures` in `ALLUVIUM_FIXTURES` is compared in place of it.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{DType, Tape, Tensor};
use alluvium_ops::*;
use golden::{Golden, near};

mod golden;

#[test]
fn causal_conv1d_is_the_convolution_of_mlx() {
    let file = Golden::open("conv1d");
    for case in file.cases("") {
        let (case, bound) = (case.as_str(), file.bound(&case, 1e-5));
        for (activation, result, prefix) in [(Activation::Silu, "out", ""), (Activation::None, "y", "lin_")] {
            let tape = Tape::new();
            let w = file.get(case, "w");
            let w = tape.watch(&w.reshape([w.shape()[0], w.shape()[1]]).unwrap());
            let (x, state) = (tape.watch(&file.get(case, "x")), tape.watch(&file.get(case, "state")));
            let args = CausalConv1dArgs { x: &x, w: &w, initial_state: Some(&state), cu_seqlens: None, activation };
            let convolved = causal_conv1d(args).unwrap();
            near(&format!("{case} {result}"), &convolved.y, &file.get(case, result), bound);
            let kept = convolved.final_state.unwrap().to_floats().unwrap();
            assert_eq!(kept, file.get(case, "new_state").to_floats().unwrap());
            let grads = tape.backward(&[(&convolved.y, &file.get(case, "ct"))]).unwrap();
            for (name, x) in [("dx", &x), ("dw", &w), ("dstate", &state)] {
                let name = format!("{prefix}{name}");
                near(&format!("{case} {name}"), grads.get(x).unwrap(), &file.get(case, &name), bound);
            }
        }
    }
    file.nothing_is_left_but(&[]);
}

/// `mlx.fast.rms_norm`; without weights they are 1.
fn hold_rms_norm(file: &Golden, case: &str) {
    let (tape, bound) = (Tape::new(), file.bound(case, 1e-5));
    let x = tape.watch(&file.get(case, "x"));
    let given = file.has(case, "w");
    let w = if given { file.get(case, "w") } else { Tensor::full([x.shape().last()], 1.0, x.device()).unwrap() };
    let w = tape.watch(&w);
    let y = rms_norm(&x, &w, file.param(case, "eps").as_f64().unwrap() as f32).unwrap();
    near(case, &y, &file.get(case, "y"), bound);
    let grads = tape.backward(&[(&y, &file.get(case, "ct"))]).unwrap();
    near(&format!("{case} dx"), grads.get(&x).unwrap(), &file.get(case, "dx"), bound);
    if given {
        near(&format!("{case} dw"), grads.get(&w).unwrap(), &file.get(case, "dw"), bound);
    }
}

/// `Qwen3NextRMSNormGated` of mlx-lm.
fn hold_gated_rms_norm(file: &Golden, case: &str) {
    let (tape, bound) = (Tape::new(), file.bound(case, 1e-5));
    let [x, z, w] = ["x", "z", "w"].map(|name| tape.watch(&file.get(case, name)));
    let y = gated_rms_norm(&x, &z, &w, 1e-6).unwrap();
    near(case, &y, &file.get(case, "y"), bound);
    let grads = tape.backward(&[(&y, &file.get(case, "ct"))]).unwrap();
    for (name, x) in [("dx", &x), ("dz", &z), ("dw", &w)] {
        near(&format!("{case} {name}"), grads.get(x).unwrap(), &file.get(case, name), bound);
    }
}

/// What mlx-lm does to queries and keys; the queries carry the scale.
fn hold_l2_norm(file: &Golden, case: &str) {
    let tape = Tape::new();
    let [q, k] = ["q", "k"].map(|name| tape.watch(&file.get(case, name)));
    let factor = (k.shape().last() as f32).sqrt().recip();
    let (qn, kn) = (scale(&l2_norm(&q, 1e-6).unwrap(), factor).unwrap(), l2_norm(&k, 1e-6).unwrap());
    near(&format!("{case} q"), &qn, &file.get(case, "qn"), 1e-5);
    near(&format!("{case} k"), &kn, &file.get(case, "kn"), 1e-5);
    let grads = tape.backward(&[(&qn, &file.get(case, "ct_q")), (&kn, &file.get(case, "ct_k"))]).unwrap();
    near(&format!("{case} dq"), grads.get(&q).unwrap(), &file.get(case, "dq"), 1e-5);
    near(&format!("{case} dk"), grads.get(&k).unwrap(), &file.get(case, "dk"), 1e-5);
}

#[test]
fn norms_are_those_of_mlx_and_mlx_lm() {
    let file = Golden::open("rms_norm");
    for case in file.cases("") {
        match case.split('_').next() {
            Some("gated") => hold_gated_rms_norm(&file, &case),
            Some("qk") => hold_l2_norm(&file, &case),
            _ => hold_rms_norm(&file, &case),
        }
    }
    file.nothing_is_left_but(&[]);
}

/// `[B, H, T, D]`, as MLX has it, to `[B, T, H, D]` and back.
fn swapped(x: &Tensor) -> Tensor {
    let dtype = x.dtype();
    let [b, h, t, d] = x.shape()[..] else { panic!("{x:?} has not four axes") };
    let from = x.to_floats().unwrap();
    let mut to = Vec::with_capacity(from.len());
    for row in 0..b * t * h {
        let (batch, token, head) = (row / h / t, row / h % t, row % h);
        to.extend_from_slice(&from[((batch * h + head) * t + token) * d..][..d]);
    }
    cast(&Tensor::from_slice(&to, [b, t, h, d], x.device()).unwrap(), dtype).unwrap()
}

#[test]
fn rope_is_that_of_mlx() {
    let file = Golden::open("rope");
    for case in file.cases("") {
        let (case, tape) = (case.as_str(), Tape::new());
        let x = tape.watch(&swapped(&file.get(case, "x")));
        let [batch, tokens] = [x.shape()[0], x.shape()[1]];
        let offset = file.param(case, "offset");
        let offsets: Vec<u32> =
            (0..batch).map(|b| offset.as_u64().or_else(|| offset[b].as_u64()).unwrap() as u32).collect();
        // the angles of mlx are f32: they are off by a thousandth at position 1e5
        let furthest = offsets.iter().max().copied().unwrap_or(0) as f32;
        let bound = file.bound(case, 2e-5f32.max(1e-8 * furthest));
        let positions: Vec<u32> = offsets.iter().flat_map(|&at| (0..tokens as u32).map(move |t| at + t)).collect();
        let positions = Tensor::from_slice(&positions, [batch, tokens], x.device()).unwrap();
        let dims = file.param(case, "dims").as_u64().unwrap() as usize;
        let pairs = if file.param(case, "traditional") == true { Pairs::Neighbours } else { Pairs::Halves };
        // the one case with frequencies of its own is made by mlx-lm's `Llama3RoPE` from these numbers
        let (theta, scaling) = match file.param(case, "base").as_f64() {
            Some(base) => (base as f32, RopeScaling::None),
            None => (5e5, RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 512.0 }),
        };
        let turn = Rope { theta, dims, scaling, pairs };
        if file.has(case, "freqs") {
            let periods = file.get(case, "freqs").to_vec::<f32>().unwrap();
            for (i, period) in periods.into_iter().enumerate() {
                assert!((turn.frequency(i) * f64::from(period) - 1.0).abs() < 1e-5, "{case}: frequency {i}");
            }
        }
        let y = rope(&x, &positions, turn).unwrap();
        near(case, &y, &swapped(&file.get(case, "y")), bound);
        let grads = tape.backward(&[(&y, &swapped(&file.get(case, "ct")))]).unwrap();
        near(&format!("{case} dx"), grads.get(&x).unwrap(), &swapped(&file.get(case, "dx")), bound);
    }
    file.nothing_is_left_but(&[]);
}

/// Each query alone is the last of all positions, so that it sees them all: `[B, T, A, D]` as `[B·T, 1, A, D]`, and
/// keys for each of them.
fn one_by_one(x: &Tensor, times: usize) -> Tensor {
    let rows: Vec<f32> = x.to_floats().unwrap();
    let repeated: Vec<f32> = rows.chunks(rows.len() / x.shape()[0]).flat_map(|b| b.repeat(times)).collect();
    let [b, s, g, d] = x.shape()[..] else { panic!("{x:?} has not four axes") };
    Tensor::from_slice(&repeated, [b * times, s, g, d], x.device()).unwrap()
}

/// Attention that sees everything, by queries that are asked one by one: `[o, dq, dk, dv]`.
fn attend_to_all(q: &Tensor, k: &Tensor, v: &Tensor, ct: &Tensor, factor: f32) -> [Tensor; 4] {
    let [b, t, a, d] = q.shape()[..] else { panic!("{q:?} has not four axes") };
    let tape = Tape::new();
    let alone = |x: &Tensor| x.reshape([b * t, 1, a, d]).unwrap();
    let (q1, k1, v1) = (tape.watch(&alone(q)), tape.watch(&one_by_one(k, t)), tape.watch(&one_by_one(v, t)));
    let o = attention(AttentionArgs { q: &q1, k: &k1, v: &v1, cu_seqlens: None, scale: factor }).unwrap();
    let grads = tape.backward(&[(&o, &alone(ct))]).unwrap();
    // what every query gave to the same keys
    let summed = |dx: &Tensor, like: &Tensor| {
        let (dx, part) = (dx.to_floats().unwrap(), like.elements() / b);
        let sums: Vec<f32> = (0..like.elements())
            .map(|i| (0..t).map(|query| dx[(i / part * t + query) * part + i % part]).sum())
            .collect();
        Tensor::from_slice(&sums, like.shape(), like.device()).unwrap()
    };
    let back = |x: &Tensor| x.reshape(q.shape()).unwrap();
    let (dk, dv) = (summed(grads.get(&k1).unwrap(), k), summed(grads.get(&v1).unwrap(), v));
    [back(&o.detach()), back(grads.get(&q1).unwrap()), dk, dv]
}

#[test]
fn attention_is_that_of_mlx() {
    let file = Golden::open("sdpa");
    for case in file.cases("") {
        let (case, bound) = (case.as_str(), file.bound(&case, 1e-5));
        let [q, k, v, ct] = ["q", "k", "v", "ct"].map(|name| swapped(&file.get(case, name)));
        let factor = file.param(case, "scale").as_f64().unwrap() as f32;
        let found = if file.param(case, "causal") == true {
            let tape = Tape::new();
            let [q, k, v] = [&q, &k, &v].map(|x| tape.watch(x));
            let o = attention(AttentionArgs { q: &q, k: &k, v: &v, cu_seqlens: None, scale: factor }).unwrap();
            let grads = tape.backward(&[(&o, &ct)]).unwrap();
            let [dq, dk, dv] = [&q, &k, &v].map(|x| grads.get(x).unwrap().clone());
            [o.detach(), dq, dk, dv]
        } else {
            attend_to_all(&q, &k, &v, &ct, factor)
        };
        for (name, found) in ["y", "dq", "dk", "dv"].iter().zip(&found) {
            near(&format!("{case} {name}"), found, &swapped(&file.get(case, name)), bound);
        }
    }
    file.nothing_is_left_but(&[]);
}

/// How near a case of the delta rule is to be.
fn bound_of_the_rule(file: &Golden, case: &str) -> f32 {
    // two hundred steps with almost no decay: mlx goes token by token, we by chunks
    file.bound(case, if case == "t200_slow" { 2e-5 } else { 1e-5 })
}

/// From what the layer computes, `a` and `b`, to the results and back.
fn hold_the_delta_rule(file: &Golden, case: &str) {
    let (tape, bound) = (Tape::new(), bound_of_the_rule(file, case));
    let [q, k, v, a, b, a_log, dt_bias] =
        ["q", "k", "v", "a", "b", "A_log", "dt_bias"].map(|name| tape.watch(&file.get(case, name)));
    let state = file.has(case, "state").then(|| tape.watch(&file.get(case, "state")));
    let gates = gdn_gate(&a, &b, &a_log, &dt_bias).unwrap();
    near(&format!("{case} g"), &exp(&gates.g.detach()).unwrap(), &file.get(case, "g"), bound);
    near(&format!("{case} beta"), &gates.beta.detach(), &file.get(case, "beta"), bound);
    let delta = gated_delta_rule(rule([&q, &k, &v], &gates.g, &gates.beta, state.as_ref())).unwrap();
    near(case, &delta.o, &file.get(case, "y"), bound);
    near(case, &delta.final_state, &file.get(case, "state_out"), bound);
    let seeds = [file.get(case, "ct_y"), file.get(case, "ct_state")];
    let grads = tape.backward(&[(&delta.o, &seeds[0]), (&delta.final_state, &seeds[1])]).unwrap();
    // what all tokens give to a head's decay has both signs: the sum is small beside them
    let summed = if bound > 1e-4 { 2.0 * bound } else { 2e-4 };
    let mut all =
        [("dq", &q), ("dk", &k), ("dv", &v), ("da", &a), ("db", &b)].map(|(n, x)| (n, x, 2.0 * bound)).to_vec();
    all.extend([("dA_log", &a_log, summed), ("ddt_bias", &dt_bias, summed)]);
    all.extend(state.as_ref().map(|state| ("dstate", state, 2.0 * bound)));
    for (name, x, bound) in all {
        let want = file.get(case, name);
        let decays = ["da", "dA_log", "ddt_bias"].contains(&name);
        near_unless(decays && is_idle(file, case), &format!("{case} {name}"), grads.get(x).unwrap(), &want, bound);
    }
}

/// One token and no state: nothing decays, so the gradients of decays are zeros.
fn is_idle(file: &Golden, case: &str) -> bool {
    file.param(case, "T") == 1 && !file.has(case, "state")
}

/// As [`near`], unless both are zeros.
fn near_unless(zeros: bool, what: &str, got: &Tensor, want: &Tensor, bound: f32) {
    if zeros {
        assert!([got, want].iter().all(|x| x.to_floats().unwrap().iter().all(|&x| x == 0.0)), "{what}");
    } else {
        near(what, got, want, bound);
    }
}

fn rule<'a>(
    qkv: [&'a Tensor; 3],
    g: &'a Tensor,
    beta: &'a Tensor,
    initial_state: Option<&'a Tensor>,
) -> GatedDeltaArgs<'a> {
    let ([q, k, v], states) = (qkv, ChunkStates::Keep);
    GatedDeltaArgs { q, k, v, g, beta, initial_state, cu_seqlens: None, scale: 1.0, states }
}

/// The gradients of decays and strengths themselves; ours is that of the decay's logarithm, `dg · g`.
fn hold_the_gradients_of_the_gates(file: &Golden, case: &str) {
    let (tape, bound) = (Tape::new(), bound_of_the_rule(file, case));
    let [q, k, v, decay, beta] = ["q", "k", "v", "g", "beta"].map(|name| file.get(case, name));
    let decay = cast(&decay, DType::F32).unwrap();
    let g = tape.watch(&log(&decay).unwrap());
    let beta = tape.watch(&cast(&beta, DType::F32).unwrap());
    let state = file.has(case, "state").then(|| file.get(case, "state"));
    let delta = gated_delta_rule(rule([&q, &k, &v], &g, &beta, state.as_ref())).unwrap();
    let seeds = [file.get(case, "ct_y"), file.get(case, "ct_state")];
    let grads = tape.backward(&[(&delta.o, &seeds[0]), (&delta.final_state, &seeds[1])]).unwrap();
    let want = mul(&cast(&file.get(case, "dg"), DType::F32).unwrap(), &decay).unwrap();
    near_unless(is_idle(file, case), &format!("{case} dg"), grads.get(&g).unwrap(), &want, 2.0 * bound);
    near(&format!("{case} dbeta"), grads.get(&beta).unwrap(), &file.get(case, "dbeta"), 2.0 * bound);
}

/// The queries and keys of a case come from these.
fn hold_the_normalized(file: &Golden, case: &str) {
    let bound = file.bound(case, 1e-5);
    let [q, k] = ["q_raw", "k_raw"].map(|name| l2_norm(&file.get(case, name), 1e-6).unwrap());
    let q = scale(&q, (q.shape().last() as f32).sqrt().recip()).unwrap();
    near(&format!("{case} q"), &q, &file.get(case, "q"), bound);
    near(&format!("{case} k"), &k, &file.get(case, "k"), bound);
}

/// Tokens that mlx-lm masks on the left leave a state as it is: here they are not there, and the sequences are packed.
fn hold_the_masked_rule(file: &Golden, case: &str) {
    let mask = file.get(case, "mask");
    let (tokens, kept) = (mask.shape()[1], mask.to_vec::<u8>().unwrap());
    let places: Vec<usize> = (0..kept.len()).filter(|&i| kept[i] == 1).collect();
    let packed = |name: &str| {
        let x = file.get(case, name);
        let (from, width) = (x.to_vec::<f32>().unwrap(), x.elements() / kept.len());
        let rows: Vec<f32> = places.iter().flat_map(|&i| from[i * width..][..width].to_vec()).collect();
        let shape = alluvium_core::Shape::new(&[&[1, places.len()], &x.shape()[2..]].concat()).unwrap();
        Tensor::from_slice(&rows, shape, x.device()).unwrap()
    };
    let mut ends = vec![0u32];
    for row in kept.chunks(tokens) {
        ends.push(ends[ends.len() - 1] + row.iter().map(|&on| u32::from(on)).sum::<u32>());
    }
    let (tape, ends) = (Tape::new(), Tensor::from_slice(&ends, [ends.len()], mask.device()).unwrap());
    let [q, k, v, a, b] = ["q", "k", "v", "a", "b"].map(|name| tape.watch(&packed(name)));
    let [a_log, dt_bias, state] = ["A_log", "dt_bias", "state"].map(|name| tape.watch(&file.get(case, name)));
    let gates = gdn_gate(&a, &b, &a_log, &dt_bias).unwrap();
    let args = GatedDeltaArgs { cu_seqlens: Some(&ends), ..rule([&q, &k, &v], &gates.g, &gates.beta, Some(&state)) };
    let delta = gated_delta_rule(args).unwrap();
    near(case, &delta.o, &packed("y"), 1e-5);
    near(case, &delta.final_state, &file.get(case, "state_out"), 1e-5);
    let seeds = [packed("ct_y"), file.get(case, "ct_state")];
    let grads = tape.backward(&[(&delta.o, &seeds[0]), (&delta.final_state, &seeds[1])]).unwrap();
    for (name, x) in [("dq", &q), ("dk", &k), ("dv", &v), ("da", &a), ("db", &b)] {
        near(&format!("{case} {name}"), grads.get(x).unwrap(), &packed(name), 2e-5);
    }
    for (name, x) in [("dA_log", &a_log), ("ddt_bias", &dt_bias), ("dstate", &state)] {
        near(&format!("{case} {name}"), grads.get(x).unwrap(), &file.get(case, name), 2e-5);
    }
}

#[test]
fn the_gated_delta_rule_and_its_gates_are_those_of_mlx_lm() {
    let file = Golden::open("gated_delta");
    for case in file.cases("t") {
        hold_the_normalized(&file, &case);
        if file.has(&case, "mask") {
            hold_the_masked_rule(&file, &case);
            continue;
        }
        hold_the_delta_rule(&file, &case);
        hold_the_gradients_of_the_gates(&file, &case);
    }
    let through_the_gates = "their gradients to `a`, `b`, `A_log` and `dt_bias` are compared";
    file.nothing_is_left_but(&[
        ("vector_gate/*", "a decay for each channel is another layer (Kimi's), which no model here has"),
        ("t9_mask/g", through_the_gates),
        ("t9_mask/beta", through_the_gates),
        ("t9_mask/dg", through_the_gates),
        ("t9_mask/dbeta", through_the_gates),
        ("*/dstate", "of a state of zeros, which is not given here"),
    ]);
}

#[test]
fn elementwise_functions_are_those_of_mlx() {
    let file = Golden::open("activations");
    type Map = fn(&Tensor) -> alluvium_core::Result<Tensor>;
    let maps: [(&str, Map); 6] = [
        ("silu", silu),
        ("sigmoid", sigmoid),
        ("softplus", softplus),
        ("gelu", gelu),
        ("gelu_approx", gelu_approx),
        ("relu", relu),
    ];
    for case in file.cases("") {
        let (case, bound, tape) = (case.as_str(), file.bound(&case, 1e-5), Tape::new());
        let name = case.rsplit_once('_').unwrap().0;
        if let Some((_, map)) = maps.iter().find(|(of, _)| *of == name) {
            let x = tape.watch(&file.get(case, "x"));
            let y = map(&x).unwrap();
            near(case, &y, &file.get(case, "y"), bound);
            let grads = tape.backward(&[(&y, &file.get(case, "ct"))]).unwrap();
            near(&format!("{case} dx"), grads.get(&x).unwrap(), &file.get(case, "dx"), bound);
        } else if name == "swiglu" {
            let [gate, up] = ["gate", "x"].map(|name| tape.watch(&file.get(case, name)));
            let y = swiglu(&gate, &up).unwrap();
            near(case, &y, &file.get(case, "y"), bound);
            let grads = tape.backward(&[(&y, &file.get(case, "ct"))]).unwrap();
            near(&format!("{case} dgate"), grads.get(&gate).unwrap(), &file.get(case, "dgate"), bound);
            near(&format!("{case} dx"), grads.get(&up).unwrap(), &file.get(case, "dx"), bound);
        }
    }
    file.nothing_is_left_but(&[]);
}

#[test]
fn cross_entropy_is_the_masked_loss_of_mlx_lm() {
    let file = Golden::open("loss");
    for case in file.cases("") {
        let (case, tape) = (case.as_str(), Tape::new());
        let bound = if file.param(case, "dtype") == "f32" { 1e-5 } else { 2.0 / 128.0 };
        let logits = file.get(case, "logits");
        let (words, rows) = (logits.shape().last(), logits.shape()[0]);
        let tokens = logits.elements() / words;
        let x = tape.watch(&logits.reshape([tokens, words]).unwrap());
        // the logits are the projection's input, so the projection changes nothing
        let one: Vec<f32> = (0..words * words).map(|i| if i % words == i / words { 1.0 } else { 0.0 }).collect();
        let w = cast(&Tensor::from_slice(&one, [words, words], x.device()).unwrap(), x.dtype()).unwrap();
        let spans = file.get(case, "lengths").to_vec::<u32>().unwrap();
        let counts = |i: usize| {
            let (row, place) = (i / (tokens / rows), (i % (tokens / rows)) as u32 + 1);
            (spans[2 * row]..=spans[2 * row + 1]).contains(&place)
        };
        let mask: Vec<u8> = (0..tokens).map(|i| u8::from(counts(i))).collect();
        assert_eq!(mask, file.get(case, "mask").to_vec::<u8>().unwrap());
        let all = file.get(case, "targets").to_vec::<u32>().unwrap();
        let targets: Vec<u32> = all.iter().zip(&mask).map(|(&t, &on)| if on == 1 { t } else { 999 }).collect();
        let loss_of = |x: &Tensor, targets: &[u32]| {
            let targets = &Tensor::from_slice(targets, [targets.len()], x.device()).unwrap();
            let (ignore_index, reduction) = (Some(999), Reduction::Mean);
            cross_entropy(CrossEntropyArgs { x, w: &w, targets, ignore_index, reduction, z_loss: 0.0, chunk: 5 })
                .unwrap()
        };
        let loss = loss_of(&x, &targets);
        near(case, &loss, &file.get(case, "loss"), bound);
        let grads = loss.backward().unwrap();
        near(&format!("{case} dlogits"), grads.get(&x).unwrap(), &file.get(case, "dlogits"), bound);
        let x = x.detach();
        let each: Vec<f32> = all
            .iter()
            .enumerate()
            .map(|(i, &target)| loss_of(&x.rows(i, 1).unwrap(), &[target]).item().unwrap())
            .collect();
        let each = Tensor::from_slice(&each, [each.len()], x.device()).unwrap();
        near(&format!("{case} of each token"), &each, &file.get(case, "ce"), bound);
    }
    file.nothing_is_left_but(&[]);
}

/// `a·x + b·y`
fn weighed(a: f32, x: &Tensor, b: f32, y: &Tensor) -> Tensor {
    add(&scale(x, a).unwrap(), &scale(y, b).unwrap()).unwrap()
}

/// Three steps of every parameter of a case: what `step` makes of the parameter, its gradient and what it remembers.
fn hold_steps(file: &Golden, case: &str, step: impl Fn(&str, Tensor, &Tensor, &mut [Tensor; 2], u32) -> Tensor) {
    for name in ["w", "b"] {
        let mut p = file.get(case, &format!("{name}0"));
        let zeros = || Tensor::zeros(p.shape(), p.dtype(), p.device()).unwrap();
        let mut kept = [zeros(), zeros()];
        for i in 1..=3 {
            p = step(name, p, &file.get(case, &format!("g{name}{i}")), &mut kept, i);
            near(&format!("{case} {name}{i}"), &p, &file.get(case, &format!("{name}{i}")), 1e-5);
        }
    }
}

#[test]
fn optimizers_make_the_steps_of_mlx() {
    let file = Golden::open("optim");
    for case in file.cases("adam") {
        let of = |name: &str, default: f64| file.param(&case, name).as_f64().unwrap_or(default) as f32;
        let weight_decay = of("weight_decay", 0.0);
        let bias_correction = case.ends_with("_bc");
        let fixed = AdamW { learning_rate: of("lr", 0.0), weight_decay, bias_correction, ..AdamW::default() };
        if case == "adafactor" {
            continue;
        }
        hold_steps(&file, &case, |_, p, grad, [m, v], step| {
            let next = adamw(p, grad, m.clone(), v.clone(), &AdamW { step, ..fixed }).unwrap();
            (*m, *v) = (next.m, next.v);
            next.p
        });
    }
    for case in file.cases("sgd") {
        let of = |name: &str| file.param(&case, name).as_f64().unwrap_or(0.0) as f32;
        let (rate, momentum, decay) = (of("lr"), of("momentum"), of("weight_decay"));
        hold_steps(&file, &case, |_, p, grad, [v, _], _| {
            *v = weighed(momentum, v, 1.0, &weighed(1.0, grad, decay, &p));
            weighed(1.0, &p, -rate, v)
        });
    }
    let (rate, momentum, decay) = (0.02, 0.95, 0.01);
    hold_steps(&file, "muon", |name, p, grad, [v, _], _| {
        let grad = weighed(1.0, grad, decay, &p);
        *v = weighed(momentum, v, 1.0 - momentum, &grad);
        let update = weighed(1.0 - momentum, &grad, momentum, v);
        // a vector has no directions to make equal
        let update = if name == "w" { newton_schulz(&update, 5).unwrap() } else { update };
        weighed(1.0, &p, -rate, &update)
    });
    file.nothing_is_left_but(&[("lion/*", "no command trains with it"), ("adafactor/*", "train/tests/optimizers.rs")]);
}
