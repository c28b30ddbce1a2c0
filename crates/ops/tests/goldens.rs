//! The same numbers as MLX: results and gradients against files that mlx and mlx-lm wrote (`fixtures/README.md`).
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{DType, Device, Tape, Tensor};
use alluvium_ops::*;
use std::path::Path;

/// A safetensors file of f32 tensors: the length of a JSON header, the header, the elements.
struct Golden {
    bytes: Vec<u8>,
    header: serde_json::Value,
    data: usize,
}

impl Golden {
    fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/ops").join(name);
        let bytes = std::fs::read(path).unwrap();
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..data]).unwrap();
        Golden { bytes, header, data }
    }

    fn get(&self, case: &str, name: &str) -> Tensor {
        let entry = &self.header[format!("{case}/{name}")];
        let numbers = |key: &str| -> Vec<usize> {
            let list = entry[key].as_array().unwrap_or_else(|| panic!("{case}/{name} is not in the file"));
            list.iter().map(|n| n.as_u64().unwrap() as usize).collect()
        };
        assert_eq!(entry["dtype"], "F32");
        let shape = alluvium_core::Shape::new(&numbers("shape")).unwrap();
        let at = numbers("data_offsets");
        let bytes = &self.bytes[self.data + at[0]..self.data + at[1]];
        Tensor::from_bytes(bytes, shape, DType::F32, &Device::cpu()).unwrap()
    }
}

/// Fails unless the largest difference is within `bound` of the largest number.
fn near(what: &str, got: &Tensor, want: &Tensor, bound: f32) {
    let (got, want) = (got.to_floats().unwrap(), want.to_floats().unwrap());
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0.0f32, |size, x| size.max(x.abs()));
    let worst = got.iter().zip(&want).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(size > 0.0 && worst <= bound * size, "{what}: off by {worst}, the largest number is {size}");
}

#[test]
fn causal_conv1d_is_the_convolution_of_mlx() {
    let file = Golden::open("conv1d.safetensors");
    for case in ["b1t1", "b2t3_zero", "b2t17", "b2t65", "b1t33_k3", "b1t20_k2"] {
        for (activation, result, prefix) in [(Activation::Silu, "out", ""), (Activation::None, "y", "lin_")] {
            let tape = Tape::new();
            let w = file.get(case, "w");
            let w = tape.watch(&w.reshape([w.shape()[0], w.shape()[1]]).unwrap());
            let (x, state) = (tape.watch(&file.get(case, "x")), tape.watch(&file.get(case, "state")));
            let args = CausalConv1d { x: &x, w: &w, initial_state: Some(&state), cu_seqlens: None, activation };
            let convolved = causal_conv1d(args).unwrap();
            near(&format!("{case} {result}"), &convolved.y, &file.get(case, result), 1e-5);
            let kept = convolved.final_state.unwrap().to_floats().unwrap();
            assert_eq!(kept, file.get(case, "new_state").to_floats().unwrap());
            let grads = tape.backward(&[(&convolved.y, &file.get(case, "ct"))]).unwrap();
            for (name, x) in [("dx", &x), ("dw", &w), ("dstate", &state)] {
                let name = format!("{prefix}{name}");
                near(&format!("{case} {name}"), grads.of(x).unwrap(), &file.get(case, &name), 1e-5);
            }
        }
    }
}

#[test]
fn rms_norm_is_that_of_mlx() {
    let file = Golden::open("rms_norm.safetensors");
    for (case, eps) in [("d64", 1e-6), ("d128_eps1e5", 1e-5), ("d96", 1e-6), ("tiny", 1e-6)] {
        let tape = Tape::new();
        let (x, w) = (tape.watch(&file.get(case, "x")), tape.watch(&file.get(case, "w")));
        let y = rms_norm(&x, &w, eps).unwrap();
        near(case, &y, &file.get(case, "y"), 1e-5);
        let grads = tape.backward(&[(&y, &file.get(case, "ct"))]).unwrap();
        near(&format!("{case} dx"), grads.of(&x).unwrap(), &file.get(case, "dx"), 1e-5);
        near(&format!("{case} dw"), grads.of(&w).unwrap(), &file.get(case, "dw"), 1e-5);
    }
}

#[test]
fn gated_rms_norm_is_that_of_mlx_lm() {
    let file = Golden::open("rms_norm.safetensors");
    for case in ["gated_d32", "gated_d128"] {
        let tape = Tape::new();
        let [x, z, w] = ["x", "z", "w"].map(|name| tape.watch(&file.get(case, name)));
        let y = gated_rms_norm(&x, &z, &w, 1e-6).unwrap();
        near(case, &y, &file.get(case, "y"), 1e-5);
        let grads = tape.backward(&[(&y, &file.get(case, "ct"))]).unwrap();
        for (name, x) in [("dx", &x), ("dz", &z), ("dw", &w)] {
            near(&format!("{case} {name}"), grads.of(x).unwrap(), &file.get(case, name), 1e-5);
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
    let [b, h, t, d] = x.shape()[..] else { panic!("{x:?} has not four axes") };
    let from = x.to_floats().unwrap();
    let mut to = Vec::with_capacity(from.len());
    for row in 0..b * t * h {
        let (batch, token, head) = (row / h / t, row / h % t, row % h);
        to.extend_from_slice(&from[((batch * h + head) * t + token) * d..][..d]);
    }
    Tensor::from_slice(&to, [b, t, h, d], x.device()).unwrap()
}

#[test]
fn rope_is_that_of_mlx() {
    let file = Golden::open("rope.safetensors");
    // the angles of mlx are f32: at position 1e5 they are off by a thousandth
    let cases: [(&str, f32, usize, &[u32], f32); 7] = [
        ("partial", 1e7, 16, &[0], 1e-5),
        ("partial_off100", 1e7, 16, &[100], 2e-5),
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
    for case in ["causal_gqa", "causal_d256", "prefill_after_cache", "decode"] {
        let tape = Tape::new();
        let [q, k, v] = ["q", "k", "v"].map(|name| tape.watch(&swapped(&file.get(case, name))));
        let scale = (q.shape()[3] as f32).sqrt().recip();
        let o = attention(Attention { q: &q, k: &k, v: &v, cu_seqlens: None, scale }).unwrap();
        near(case, &o, &swapped(&file.get(case, "y")), 1e-5);
        let grads = tape.backward(&[(&o, &swapped(&file.get(case, "ct")))]).unwrap();
        for (name, x) in [("dq", &q), ("dk", &k), ("dv", &v)] {
            near(&format!("{case} {name}"), grads.of(x).unwrap(), &swapped(&file.get(case, name)), 1e-5);
        }
    }
}

#[test]
fn the_gated_delta_rule_and_its_gates_are_those_of_mlx_lm() {
    let file = Golden::open("gated_delta.safetensors");
    for (case, given) in [("t7_gqa", true), ("t40_beta1", false), ("t65_gqa3", true), ("t96_fast", true)] {
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
        near(case, &delta.o, &file.get(case, "y"), 1e-5);
        near(case, &delta.final_state, &file.get(case, "state_out"), 1e-5);
        let seeds = [file.get(case, "ct_y"), file.get(case, "ct_state")];
        let grads = tape.backward(&[(&delta.o, &seeds[0]), (&delta.final_state, &seeds[1])]).unwrap();
        let mut all = vec![("dq", &q), ("dk", &k), ("dv", &v), ("da", &a), ("db", &b)];
        all.extend([("dA_log", &a_log), ("ddt_bias", &dt_bias)]);
        all.extend(state.as_ref().map(|state| ("dstate", state)));
        for (name, x) in all {
            near(&format!("{case} {name}"), grads.of(x).unwrap(), &file.get(case, name), 2e-5);
        }
    }
}
