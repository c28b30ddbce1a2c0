//! The same numbers as MLX: results and gradients against files that mlx and mlx-lm wrote (`fixtures/README.md`).
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{Tape, Tensor};
use alluvium_ops::*;
use golden::{Golden, near};

/// How near half precision is: a few roundings, since mlx also rounds between the steps of a formula.
const BF16: f32 = 4.0 / 128.0;
const F16: f32 = 4.0 / 1024.0;

mod golden;

#[test]
fn causal_conv1d_is_the_convolution_of_mlx() {
    let file = Golden::open("conv1d.safetensors");
    let half = [("b2t17_bf16", BF16), ("b2t17_f16", F16)];
    for (case, bound) in
        ["b1t1", "b2t3_zero", "b2t17", "b2t65", "b1t33_k3", "b1t20_k2"].map(|c| (c, 1e-5)).into_iter().chain(half)
    {
        for (activation, result, prefix) in [(Activation::Silu, "out", ""), (Activation::None, "y", "lin_")] {
            let tape = Tape::new();
            let w = file.get(case, "w");
            let w = tape.watch(&w.reshape([w.shape()[0], w.shape()[1]]).unwrap());
            let (x, state) = (tape.watch(&file.get(case, "x")), tape.watch(&file.get(case, "state")));
            let args = CausalConv1d { x: &x, w: &w, initial_state: Some(&state), cu_seqlens: None, activation };
            let convolved = causal_conv1d(args).unwrap();
            near(&format!("{case} {result}"), &convolved.y, &file.get(case, result), bound);
            let kept = convolved.final_state.unwrap().to_floats().unwrap();
            assert_eq!(kept, file.get(case, "new_state").to_floats().unwrap());
            let grads = tape.backward(&[(&convolved.y, &file.get(case, "ct"))]).unwrap();
            for (name, x) in [("dx", &x), ("dw", &w), ("dstate", &state)] {
                let name = format!("{prefix}{name}");
                near(&format!("{case} {name}"), grads.of(x).unwrap(), &file.get(case, &name), bound);
            }
        }
    }
}

#[test]
fn rms_norm_is_that_of_mlx() {
    let file = Golden::open("rms_norm.safetensors");
    let single = ["d64", "d96", "d2048", "d5000", "tiny"].map(|case| (case, 1e-6, 1e-5));
    let others = [("d128_eps1e5", 1e-5, 1e-5), ("d64_bf16", 1e-6, BF16), ("d64_f16", 1e-6, F16)];
    for (case, eps, bound) in single.into_iter().chain(others) {
        let tape = Tape::new();
        let (x, w) = (tape.watch(&file.get(case, "x")), tape.watch(&file.get(case, "w")));
        let y = rms_norm(&x, &w, eps).unwrap();
        near(case, &y, &file.get(case, "y"), bound);
        let grads = tape.backward(&[(&y, &file.get(case, "ct"))]).unwrap();
        near(&format!("{case} dx"), grads.of(&x).unwrap(), &file.get(case, "dx"), bound);
        near(&format!("{case} dw"), grads.of(&w).unwrap(), &file.get(case, "dw"), bound);
    }
}

#[test]
fn gated_rms_norm_is_that_of_mlx_lm() {
    let file = Golden::open("rms_norm.safetensors");
    for (case, bound) in [("gated_d32", 1e-5), ("gated_d128", 1e-5), ("gated_d32_bf16", BF16)] {
        let tape = Tape::new();
        let [x, z, w] = ["x", "z", "w"].map(|name| tape.watch(&file.get(case, name)));
        let y = gated_rms_norm(&x, &z, &w, 1e-6).unwrap();
        near(case, &y, &file.get(case, "y"), bound);
        let grads = tape.backward(&[(&y, &file.get(case, "ct"))]).unwrap();
        for (name, x) in [("dx", &x), ("dz", &z), ("dw", &w)] {
            near(&format!("{case} {name}"), grads.of(x).unwrap(), &file.get(case, name), bound);
        }
    }
}

#[test]
fn l2_norm_is_that_of_the_keys_in_mlx_lm() {
    let file = Golden::open("rms_norm.safetensors");
    for case in ["qk_d32", "qk_d128", "qk_d128_small"] {
        let tape = Tape::new();
        let k = tape.watch(&file.get(case, "k"));
        let y = l2_norm(&k, 1e-6).unwrap();
        near(case, &y, &file.get(case, "kn"), 1e-5);
        let grads = tape.backward(&[(&y, &file.get(case, "ct_k"))]).unwrap();
        near(&format!("{case} dk"), grads.of(&k).unwrap(), &file.get(case, "dk"), 1e-5);
    }
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
    let file = Golden::open("rope.safetensors");
    // the angles of mlx are f32: at position 1e5 they are off by a thousandth
    let cases: [(&str, f32, usize, &[u32], f32); 8] = [
        ("partial", 1e7, 16, &[0], 1e-5),
        ("partial_off100", 1e7, 16, &[100], 2e-5),
        ("partial_bf16", 1e7, 16, &[100], BF16),
        ("partial_off100000", 1e7, 16, &[100_000], 1e-3),
        ("partial_d256", 1e7, 64, &[7], 1e-5),
        ("full", 1e6, 64, &[5, 5], 1e-5),
        ("decode_t1", 1e6, 64, &[77, 77], 2e-5),
        ("batched_offsets", 1e6, 32, &[0, 5, 50], 2e-5),
    ];
    for (case, theta, dims, offsets, bound) in cases {
        let tape = Tape::new();
        let x = tape.watch(&swapped(&file.get(case, "x")));
        let tokens = x.shape()[1];
        let positions: Vec<u32> = offsets.iter().flat_map(|&at| (0..tokens as u32).map(move |t| at + t)).collect();
        let positions = Tensor::from_slice(&positions, [offsets.len(), tokens], x.device()).unwrap();
        let y = rope(&x, &positions, Rope { theta, dims, scaling: RopeScaling::None }).unwrap();
        near(case, &y, &swapped(&file.get(case, "y")), bound);
        let grads = tape.backward(&[(&y, &swapped(&file.get(case, "ct")))]).unwrap();
        near(&format!("{case} dx"), grads.of(&x).unwrap(), &swapped(&file.get(case, "dx")), bound);
    }
}

#[test]
fn attention_is_that_of_mlx() {
    let file = Golden::open("sdpa.safetensors");
    let single = ["causal_gqa", "causal_d256", "prefill_after_cache", "decode"].map(|case| (case, 1e-5));
    for (case, bound) in single.into_iter().chain([("causal_gqa_bf16", BF16)]) {
        let tape = Tape::new();
        let [q, k, v] = ["q", "k", "v"].map(|name| tape.watch(&swapped(&file.get(case, name))));
        let scale = (q.shape()[3] as f32).sqrt().recip();
        let o = attention(Attention { q: &q, k: &k, v: &v, cu_seqlens: None, scale }).unwrap();
        near(case, &o, &swapped(&file.get(case, "y")), bound);
        let grads = tape.backward(&[(&o, &swapped(&file.get(case, "ct")))]).unwrap();
        for (name, x) in [("dq", &q), ("dk", &k), ("dv", &v)] {
            near(&format!("{case} {name}"), grads.of(x).unwrap(), &swapped(&file.get(case, name)), bound);
        }
    }
}

#[test]
fn the_gated_delta_rule_and_its_gates_are_those_of_mlx_lm() {
    let file = Golden::open("gated_delta.safetensors");
    let cases = [
        ("t1_state", true, 1e-5),
        ("t7_gqa", true, 1e-5),
        ("t12_dkdv", true, 1e-5),
        ("t33_f16", true, F16),
        ("t40_beta1", false, 1e-5),
        ("t65_gqa3", true, 1e-5),
        ("t96_fast", true, 1e-5),
    ];
    for (case, given, bound) in cases {
        let tape = Tape::new();
        let [q, k, v, a, b, a_log, dt_bias] =
            ["q", "k", "v", "a", "b", "A_log", "dt_bias"].map(|name| tape.watch(&file.get(case, name)));
        let state = given.then(|| tape.watch(&file.get(case, "state")));
        let gates = gdn_gate(&a, &b, &a_log, &dt_bias).unwrap();
        let args = GatedDelta {
            q: &q,
            k: &k,
            v: &v,
            g: &gates.g,
            beta: &gates.beta,
            initial_state: state.as_ref(),
            cu_seqlens: None,
            scale: 1.0,
            states: ChunkStates::Keep,
        };
        let delta = gated_delta_rule(args).unwrap();
        near(case, &delta.o, &file.get(case, "y"), bound);
        near(case, &delta.final_state, &file.get(case, "state_out"), bound);
        let seeds = [file.get(case, "ct_y"), file.get(case, "ct_state")];
        let grads = tape.backward(&[(&delta.o, &seeds[0]), (&delta.final_state, &seeds[1])]).unwrap();
        let mut all = vec![("dq", &q), ("dk", &k), ("dv", &v), ("da", &a), ("db", &b)];
        all.extend([("dA_log", &a_log), ("ddt_bias", &dt_bias)]);
        all.extend(state.as_ref().map(|state| ("dstate", state)));
        for (name, x) in all {
            near(&format!("{case} {name}"), grads.of(x).unwrap(), &file.get(case, name), 2.0 * bound);
        }
    }
}

#[test]
fn elementwise_functions_are_those_of_mlx() {
    let file = Golden::open("activations.safetensors");
    type Map = fn(&Tensor) -> alluvium_core::Result<Tensor>;
    let maps: [(&str, Map); 4] = [("silu", silu), ("sigmoid", sigmoid), ("softplus", softplus), ("gelu", gelu)];
    for (dtype, bound) in [("f32", 1e-5), ("bf16", BF16), ("f16", F16)] {
        for (name, map) in maps {
            let case = format!("{name}_{dtype}");
            let tape = Tape::new();
            let x = tape.watch(&file.get(&case, "x"));
            let y = map(&x).unwrap();
            near(&case, &y, &file.get(&case, "y"), bound);
            let grads = tape.backward(&[(&y, &file.get(&case, "ct"))]).unwrap();
            near(&format!("{case} dx"), grads.of(&x).unwrap(), &file.get(&case, "dx"), bound);
        }
        let (case, tape) = (format!("swiglu_{dtype}"), Tape::new());
        let [gate, up] = ["gate", "x"].map(|name| tape.watch(&file.get(&case, name)));
        let y = swiglu(&gate, &up).unwrap();
        near(&case, &y, &file.get(&case, "y"), bound);
        let grads = tape.backward(&[(&y, &file.get(&case, "ct"))]).unwrap();
        near(&format!("{case} dgate"), grads.of(&gate).unwrap(), &file.get(&case, "dgate"), bound);
        near(&format!("{case} dx"), grads.of(&up).unwrap(), &file.get(&case, "dx"), bound);
    }
}

#[test]
fn cross_entropy_is_the_masked_loss_of_mlx_lm() {
    let file = Golden::open("loss.safetensors");
    for (case, bound) in [("masked_ce_f32", 1e-5), ("masked_ce_bf16", 2.0 / 128.0)] {
        let tape = Tape::new();
        let logits = file.get(case, "logits");
        let (tokens, words) = (logits.elements() / 48, 48);
        let x = tape.watch(&logits.reshape([tokens, words]).unwrap());
        // the logits are the projection's input, so the projection changes nothing
        let one: Vec<f32> = (0..words * words).map(|i| if i % words == i / words { 1.0 } else { 0.0 }).collect();
        let w = cast(&Tensor::from_slice(&one, [words, words], x.device()).unwrap(), x.dtype()).unwrap();
        let (targets, mask) = (file.get(case, "targets"), file.get(case, "mask").to_vec::<u8>().unwrap());
        let targets = targets.to_vec::<u32>().unwrap();
        let targets: Vec<u32> = targets.iter().zip(&mask).map(|(&t, &on)| if on == 1 { t } else { 999 }).collect();
        let targets = Tensor::from_slice(&targets, [tokens], x.device()).unwrap();
        let args = CrossEntropy {
            x: &x,
            w: &w,
            targets: &targets,
            ignore_index: Some(999),
            reduction: Reduction::Mean,
            z_loss: 0.0,
            chunk: 5,
        };
        let loss = cross_entropy(args).unwrap();
        near(case, &loss, &file.get(case, "loss"), bound);
        let grads = loss.backward().unwrap();
        near(&format!("{case} dlogits"), grads.of(&x).unwrap(), &file.get(case, "dlogits"), bound);
    }
}

#[test]
fn adamw_makes_the_steps_of_mlx() {
    let file = Golden::open("optim.safetensors");
    for (case, weight_decay) in [("adam_bc", 0.0), ("adamw_bc", 0.1)] {
        for name in ["w", "b"] {
            let mut p = file.get(case, &format!("{name}0"));
            let zeros = || Tensor::zeros(p.shape(), p.dtype(), p.device()).unwrap();
            let (mut m, mut v) = (zeros(), zeros());
            for step in 1..=3 {
                let settings = AdamW { learning_rate: 0.01, weight_decay, step, ..AdamW::default() };
                let grad = file.get(case, &format!("g{name}{step}"));
                let next = adamw(p, &grad, m, v, &settings).unwrap();
                (p, m, v) = (next.p, next.m, next.v);
                near(&format!("{case} {name}{step}"), &p, &file.get(case, &format!("{name}{step}")), 1e-5);
            }
        }
    }
}

#[test]
fn newton_schulz_makes_the_steps_of_muon_in_mlx() {
    let file = Golden::open("optim.safetensors");
    let (rate, momentum, decay) = (0.02, 0.95, 0.01);
    let weighed = |a: f32, x: &Tensor, b: f32, y: &Tensor| add(&scale(x, a).unwrap(), &scale(y, b).unwrap()).unwrap();
    let mut p = file.get("muon", "w0");
    let mut v = Tensor::zeros(p.shape(), p.dtype(), p.device()).unwrap();
    for step in 1..=3 {
        let grad = weighed(1.0, &file.get("muon", &format!("gw{step}")), decay, &p);
        v = weighed(momentum, &v, 1.0 - momentum, &grad);
        let update = newton_schulz(&weighed(1.0 - momentum, &grad, momentum, &v), 5).unwrap();
        p = weighed(1.0, &p, -rate, &update);
        near(&format!("w{step}"), &p, &file.get("muon", &format!("w{step}")), 1e-5);
    }
}
