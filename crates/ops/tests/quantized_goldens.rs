//! Quantized matrices and mixtures of experts against files that mlx and mlx-lm wrote (`fixtures/README.md`).
//!
//! As in `goldens.rs`, the manifest gives the cases, and each test ends with what it leaves out and why.
#![allow(clippy::unwrap_used, clippy::panic)]

mod golden;

use alluvium_core::{DType, Tape, Tensor};
use alluvium_ops::*;
use golden::{Golden, near};
use serde_json::Value;

/// How a case's matrix is packed.
fn packing(file: &Golden, case: &str) -> Packing {
    let number = |name: &str| file.param(case, name).as_u64().unwrap() as usize;
    match file.param(case, "mode").as_str() {
        Some("mxfp4") => Packing::Mxfp4,
        Some("mxfp8") => Packing::Mxfp8,
        Some("nvfp4") => Packing::Nvfp4,
        _ => Packing::Affine { bits: number("bits") as u32, group: number("group_size") },
    }
}

/// The quantized matrix of a case.
fn packed(file: &Golden, case: &str) -> Packed {
    let biases = file.has(case, "biases").then(|| file.get(case, "biases"));
    Packed { w: file.get(case, "q"), scales: file.get(case, "scales"), biases, packing: packing(file, case) }
}

/// The case with the inputs of a case.
fn inputs(file: &Golden, case: &str) -> String {
    file.param(case, "inputs").as_str().unwrap().to_owned()
}

/// Packing the input gives the bits of MLX.
fn hold_packing(file: &Golden, case: &str) {
    let want = packed(file, case);
    let got = quantize(&file.get(&inputs(file, case), "w"), want.packing).unwrap();
    let same = |got: &Tensor, want: &Tensor, what: &str| {
        assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()), "{case} {what}");
        assert!(got.to_bytes().unwrap() == want.to_bytes().unwrap(), "{case} {what}: other bits");
    };
    same(&got.w, &want.w, "codes");
    same(&got.scales, &want.scales, "scales");
    assert_eq!(got.biases.is_some(), want.biases.is_some());
    if let (Some(got), Some(want)) = (got.biases, want.biases) {
        same(&got, &want, "biases");
    }
}

/// `x · wᵀ`, and `x2 · w` as the gradient that `x2` gives.
fn products(packed: &Packed, x: &Tensor, x2: &Tensor) -> [Tensor; 2] {
    let tape = Tape::new();
    let x = tape.watch(x);
    let y = quantized_matmul(&x, &packed.quantized()).unwrap();
    let grads = tape.backward(&[(&y, x2)]).unwrap();
    [y.detach(), grads.get(&x).unwrap().clone()]
}

/// Both products in f32 and as stored, against those with the numbers in f32 and those of mlx.
fn hold_products(file: &Golden, case: &str) {
    let (packed, from) = (packed(file, case), inputs(file, case));
    let [x, x2] = ["x", "x2"].map(|name| file.get(&from, name));
    let [want, want2] = ["qmm_f32ref", "qmm_n_f32ref"].map(|name| file.get(case, name));
    let wide = |x: &Tensor| cast(x, DType::F32).unwrap();
    let [y, dx] = products(&packed, &wide(&x), &wide(&x2));
    near(case, &y, &want, 1e-5);
    near(case, &dx, &want2, 1e-5);
    let bound = x.dtype().epsilon() as f32;
    let [y, dx] = products(&packed, &x, &x2);
    near(case, &y, &want, bound.max(1e-5));
    near(case, &dx, &want2, bound.max(1e-5));
    // mlx sums in the storage's type on a processor, which costs it so much
    let bound = match x.dtype() {
        DType::BF16 => 0.05,
        DType::F16 => 0.01,
        _ => 1e-5,
    };
    near(case, &y, &file.get(case, "qmm"), bound);
    near(case, &dx, &file.get(case, "qmm_n"), bound);
}

#[test]
fn affine_packing_its_values_and_its_products_match_mlx() {
    let file = Golden::open("quant_affine");
    for case in file.cases("b") {
        hold_packing(&file, &case);
        let want = file.get(&case, "dequant");
        let bound = match want.dtype() {
            DType::F32 => 1e-6,
            // mlx rounds the product, and then the sum
            dtype => 2.0 * dtype.epsilon() as f32,
        };
        near(&case, &dequantize(&packed(&file, &case).quantized(), want.dtype()).unwrap(), &want, bound);
        hold_products(&file, &case);
    }
    let case = "qmm_grad";
    let [y, dx] = products(&packed(&file, case), &file.get(case, "x"), &file.get(case, "ct"));
    near("y", &y, &file.get(case, "y"), 1e-5);
    near("dx", &dx, &file.get(case, "dx"), 1e-5);
    let (case, x, experts) = ("gather_qmm", file.get("gather_qmm", "x"), file.get("gather_qmm", "idx"));
    let y = quantized_grouped_matmul(&x, &packed(&file, case).quantized(), &experts).unwrap();
    near("y", &y, &file.get(case, "y"), 1e-5);
    file.nothing_is_left_but(&[]);
}

/// A scale for the whole matrix, `g`: those of groups are stored times `448·6/g`.
fn hold_a_global_scale(file: &Golden, case: &str) {
    let factor = 448.0 * 6.0 / file.get(case, "global_scale").item().unwrap();
    let want = packed(file, case);
    let got = quantize(&scale(&file.get(case, "w"), factor).unwrap(), want.packing).unwrap();
    assert!(got.scales.to_bytes().unwrap() == want.scales.to_bytes().unwrap(), "{case}: other scales");
    assert!(got.w.to_bytes().unwrap() == want.w.to_bytes().unwrap(), "{case}: other codes");
    let numbers = dequantize(&want.quantized(), DType::F32).unwrap();
    near(case, &scale(&numbers, factor.recip()).unwrap(), &file.get(case, "dequant"), 1e-6);
}

/// Every code of e4m3, by groups whose scale is 1.
fn hold_eight_bit_floats(file: &Golden) {
    let (codes, values) = (file.get("fp8_table", "codes"), file.get("fp8_table", "values").to_floats().unwrap());
    let w = Tensor::from_bytes(&codes.to_bytes().unwrap(), [8, 8], DType::U32, codes.device()).unwrap();
    let scales = Tensor::from_slice(&[127u8; 8], [8, 1], w.device()).unwrap();
    let q = Quantized { w: &w, scales: &scales, biases: None, packing: Packing::Mxfp8 };
    let got = dequantize(&q, DType::F32).unwrap().to_floats().unwrap();
    for (code, (got, want)) in got.iter().zip(&values).enumerate() {
        assert!(got == want || (got.is_nan() && want.is_nan()), "{code}: {got} for {want}");
    }
    let (x, codes) = (file.get("to_fp8", "x").to_floats().unwrap(), file.get("to_fp8", "codes"));
    for (x, want) in x.into_iter().zip(codes.to_vec::<u8>().unwrap()) {
        // a number beside 448, the largest, has the scale 1; what is above 448 becomes that
        let mut group = [448.0; 32];
        group[0] = x.clamp(-448.0, 448.0);
        let got = quantize(&Tensor::from_slice(&group, [1, 32], w.device()).unwrap(), Packing::Mxfp8).unwrap();
        let code = (got.scales.to_vec::<u8>().unwrap()[0], got.w.to_bytes().unwrap()[0]);
        assert_eq!(code, (127, want), "{x}");
    }
}

#[test]
fn matrices_of_small_floats_and_their_products_are_those_of_mlx() {
    let file = Golden::open("quant_fp");
    for case in file.cases("").iter().filter(|case| matches!(file.param(case, "inputs"), Value::String(_))) {
        hold_packing(&file, case);
        let packed = packed(&file, case);
        let got = dequantize(&packed.quantized(), DType::F32).unwrap();
        assert_eq!(got.to_floats().unwrap(), file.get(case, "dequant_f32").to_floats().unwrap(), "{case}");
        let want = file.get(case, "dequant");
        let got = dequantize(&packed.quantized(), want.dtype()).unwrap();
        assert_eq!(got.to_floats().unwrap(), want.to_floats().unwrap(), "{case}, as {}", want.dtype());
        hold_products(&file, case);
    }
    hold_a_global_scale(&file, "nvfp4_global_scale");
    hold_eight_bit_floats(&file);
    file.nothing_is_left_but(&[]);
}

/// `Qwen3NextSparseMoeBlock`: the chosen experts' MLPs, and one that all tokens share behind a gate.
fn mixture(x: &Tensor, of: impl Fn(&str) -> Tensor, norm_topk_prob: bool) -> Tensor {
    let RouteOutput { weights, experts } =
        route(&linear(x, &of("gate.weight")).unwrap(), Routing { top_k: 2, norm_topk_prob }).unwrap();
    let [gate, up, down] = ["gate", "up", "down"].map(|name| of(&format!("switch_mlp.{name}_proj.weight")));
    let product = |x: &Tensor, w: &Tensor| grouped_matmul(x, w, &experts).unwrap();
    let h = swiglu(&product(x, &gate), &product(x, &up)).unwrap();
    let routed = combine_experts(&product(&h, &down), &weights).unwrap();
    let [gate, up, down] = ["gate", "up", "down"].map(|name| of(&format!("shared_expert.{name}_proj.weight")));
    let h = swiglu(&linear(x, &gate).unwrap(), &linear(x, &up).unwrap()).unwrap();
    let open = sigmoid(&linear(x, &of("shared_expert_gate.weight")).unwrap()).unwrap();
    // one number a token, spread over its row
    let open = linear(&open, &Tensor::full([x.shape()[1], 1], 1.0, x.device()).unwrap()).unwrap();
    add(&routed, &mul(&linear(&h, &down).unwrap(), &open).unwrap()).unwrap()
}

#[test]
fn a_mixture_of_experts_is_that_of_mlx_lm() {
    let file = Golden::open("moe");
    let mut names = vec!["gate.weight".to_owned(), "shared_expert_gate.weight".to_owned()];
    for part in ["switch_mlp", "shared_expert"] {
        names.extend(["gate", "up", "down"].map(|name| format!("{part}.{name}_proj.weight")));
    }
    for case in file.cases("") {
        let case = case.as_str();
        let normalize = file.param(case, "norm_topk_prob") == true;
        let tape = Tape::new();
        let flat = |x: Tensor| x.reshape([x.elements() / 32, 32]).unwrap();
        let x = tape.watch(&flat(file.get(case, "x")));
        let params: Vec<Tensor> = names.iter().map(|name| tape.watch(&file.get(case, &format!("p.{name}")))).collect();
        let of = |name: &str| params[names.iter().position(|n| n == name).unwrap()].clone();
        let y = mixture(&x, of, normalize);
        near(case, &y, &file.get(case, "y"), 1e-5);
        let grads = tape.backward(&[(&y, &flat(file.get(case, "ct")))]).unwrap();
        near(&format!("{case} dx"), grads.get(&x).unwrap(), &file.get(case, "dx"), 1e-5);
        for (name, param) in names.iter().zip(&params) {
            let want = file.get(case, &format!("d.{name}"));
            near(&format!("{case} {name}"), grads.get(param).unwrap(), &want, 1e-5);
        }
    }
    file.nothing_is_left_but(&[]);
}
