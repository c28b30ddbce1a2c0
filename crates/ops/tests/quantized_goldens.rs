//! Quantised matrices and mixtures of experts against files that mlx and mlx-lm wrote (`fixtures/README.md`).
#![allow(clippy::unwrap_used, clippy::panic)]

mod golden;

use alluvium_core::{DType, Tape, Tensor};
use alluvium_ops::*;
use golden::{Golden, near};

const BITS: [u32; 7] = [1, 2, 3, 4, 5, 6, 8];
const GROUPS: [usize; 3] = [32, 64, 128];
const DTYPES: [&str; 3] = ["f32", "bf16", "f16"];

/// The quantised matrix of a case.
fn packed(file: &Golden, case: &str, packing: Packing) -> Packed {
    let affine = matches!(packing, Packing::Affine { .. });
    let biases = affine.then(|| file.get(case, "biases"));
    Packed { w: file.get(case, "q"), scales: file.get(case, "scales"), biases, packing }
}

fn each_affine(mut look: impl FnMut(&str, &str, Packing)) {
    for dtype in DTYPES {
        for bits in BITS {
            for group in GROUPS {
                look(&format!("b{bits}_g{group}_{dtype}"), dtype, Packing::Affine { bits, group });
            }
        }
    }
}

#[test]
fn quantize_affine_makes_the_bits_of_mlx() {
    let file = Golden::open("quant_affine.safetensors");
    each_affine(|case, dtype, packing| {
        let Packing::Affine { bits, group } = packing else { return };
        let got = quantize_affine(&file.get(&format!("inputs_{dtype}"), "w"), bits, group).unwrap();
        let want = packed(&file, case, packing);
        let same = |got: &Tensor, want: &Tensor, what: &str| {
            assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()), "{case} {what}");
            assert!(got.to_bytes().unwrap() == want.to_bytes().unwrap(), "{case} {what}: other bits");
        };
        same(&got.w, &want.w, "codes");
        same(&got.scales, &want.scales, "scales");
        same(&got.biases.unwrap(), &want.biases.unwrap(), "biases");
    });
}

#[test]
fn dequantize_gives_the_numbers_of_mlx() {
    let file = Golden::open("quant_affine.safetensors");
    for (dtype, bound) in [("f32", 1e-6), ("bf16", 1.0 / 128.0), ("f16", 1.0 / 1024.0)] {
        for bits in BITS {
            let case = format!("b{bits}_g64_{dtype}");
            let want = file.get(&case, "dequant");
            let packed = packed(&file, &case, Packing::Affine { bits, group: 64 });
            let got = dequantize(&packed.quantized(), want.dtype()).unwrap();
            near(&case, &got, &want, bound);
        }
    }
}

/// `x · wᵀ`, and `x2 · w` as the gradient that `x2` gives.
fn products(packed: &Packed, x: &Tensor, x2: &Tensor) -> [Tensor; 2] {
    let tape = Tape::new();
    let x = tape.watch(x);
    let y = quantized_matmul(&x, &packed.quantized()).unwrap();
    let grads = tape.backward(&[(&y, x2)]).unwrap();
    [y.detach(), grads.of(&x).unwrap().clone()]
}

fn hold_products(file: &Golden, case: &str, dtype: &str, packing: Packing) {
    let packed = packed(file, case, packing);
    let [x, x2] = ["x", "x2"].map(|name| file.get(&format!("inputs_{dtype}"), name));
    let [want, want2] = ["qmm_f32ref", "qmm_n_f32ref"].map(|name| file.get(case, name));
    let wide = |x: &Tensor| cast(x, DType::F32).unwrap();
    let [y, dx] = products(&packed, &wide(&x), &wide(&x2));
    near(case, &y, &want, 1e-5);
    near(case, &dx, &want2, 1e-5);
    let bound = x.dtype().epsilon() as f32;
    let [y, dx] = products(&packed, &x, &x2);
    near(case, &y, &want, bound.max(1e-5));
    near(case, &dx, &want2, bound.max(1e-5));
}

#[test]
fn quantized_matmul_is_the_product_with_the_numbers_that_mlx_reads() {
    let file = Golden::open("quant_affine.safetensors");
    each_affine(|case, dtype, packing| hold_products(&file, case, dtype, packing));
}

#[test]
fn the_gradient_through_a_quantised_matrix_is_that_of_mlx() {
    let file = Golden::open("quant_affine.safetensors");
    let packed = packed(&file, "qmm_grad", Packing::Affine { bits: 4, group: 64 });
    let [y, dx] = products(&packed, &file.get("qmm_grad", "x"), &file.get("qmm_grad", "ct"));
    near("y", &y, &file.get("qmm_grad", "y"), 1e-5);
    near("dx", &dx, &file.get("qmm_grad", "dx"), 1e-5);
}

#[test]
fn matrices_of_small_floats_are_read_as_mlx_reads_them() {
    let file = Golden::open("quant_fp.safetensors");
    for (name, packing) in [("mxfp4", Packing::Mxfp4), ("mxfp8", Packing::Mxfp8), ("nvfp4", Packing::Nvfp4)] {
        for dtype in ["f32", "bf16"] {
            let case = format!("{name}_{dtype}");
            let got = dequantize(&packed(&file, &case, packing).quantized(), DType::F32).unwrap();
            assert_eq!(got.to_floats().unwrap(), file.get(&case, "dequant_f32").to_floats().unwrap(), "{case}");
            hold_products(&file, &case, dtype, packing);
        }
    }
}

#[test]
fn quantize_makes_the_small_floats_of_mlx() {
    let file = Golden::open("quant_fp.safetensors");
    for (name, packing) in [("mxfp4", Packing::Mxfp4), ("mxfp8", Packing::Mxfp8), ("nvfp4", Packing::Nvfp4)] {
        for dtype in ["f32", "bf16"] {
            let case = format!("{name}_{dtype}");
            let got = quantize(&file.get(&format!("inputs_{dtype}"), "w"), packing).unwrap();
            let want = packed(&file, &case, packing);
            assert!(got.scales.to_bytes().unwrap() == want.scales.to_bytes().unwrap(), "{case}: other scales");
            assert!(got.w.to_bytes().unwrap() == want.w.to_bytes().unwrap(), "{case}: other codes");
        }
    }
}

#[test]
fn every_code_of_eight_bit_floats_is_the_number_that_mlx_reads() {
    let file = Golden::open("quant_fp.safetensors");
    let (codes, values) = (file.get("fp8_table", "codes"), file.get("fp8_table", "values").to_floats().unwrap());
    let w = Tensor::from_bytes(&codes.to_bytes().unwrap(), [8, 8], DType::U32, codes.device()).unwrap();
    let scales = Tensor::from_slice(&[127u8; 8], [8, 1], w.device()).unwrap();
    let q = Quantized { w: &w, scales: &scales, biases: None, packing: Packing::Mxfp8 };
    let got = dequantize(&q, DType::F32).unwrap().to_floats().unwrap();
    for (code, (got, want)) in got.iter().zip(&values).enumerate() {
        assert!(got == want || (got.is_nan() && want.is_nan()), "{code}: {got} for {want}");
    }
}

#[test]
fn products_with_chosen_quantised_experts_are_those_of_mlx() {
    let file = Golden::open("quant_affine.safetensors");
    let packed = packed(&file, "gather_qmm", Packing::Affine { bits: 4, group: 64 });
    let (x, experts) = (file.get("gather_qmm", "x"), file.get("gather_qmm", "idx"));
    let y = quantized_grouped_matmul(&x, &packed.quantized(), &experts).unwrap();
    near("y", &y, &file.get("gather_qmm", "y"), 1e-5);
}

/// `Qwen3NextSparseMoeBlock`: the chosen experts' MLPs, and one that all tokens share behind a gate.
fn mixture(x: &Tensor, of: impl Fn(&str) -> Tensor, normalise: Normalise) -> Tensor {
    let Route { weights, experts } = route(&linear(x, &of("gate.weight")).unwrap(), 2, normalise).unwrap();
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
    let file = Golden::open("moe.safetensors");
    let mut names = vec!["gate.weight".to_owned(), "shared_expert_gate.weight".to_owned()];
    for part in ["switch_mlp", "shared_expert"] {
        names.extend(["gate", "up", "down"].map(|name| format!("{part}.{name}_proj.weight")));
    }
    for (case, normalise) in [("norm", Normalise::Yes), ("nonorm", Normalise::No), ("norm_sorted", Normalise::Yes)] {
        let tape = Tape::new();
        let flat = |x: Tensor| x.reshape([x.elements() / 32, 32]).unwrap();
        let x = tape.watch(&flat(file.get(case, "x")));
        let params: Vec<Tensor> = names.iter().map(|name| tape.watch(&file.get(case, &format!("p.{name}")))).collect();
        let of = |name: &str| params[names.iter().position(|n| n == name).unwrap()].clone();
        let y = mixture(&x, of, normalise);
        near(case, &y, &file.get(case, "y"), 1e-5);
        let grads = tape.backward(&[(&y, &flat(file.get(case, "ct")))]).unwrap();
        near(&format!("{case} dx"), grads.of(&x).unwrap(), &file.get(case, "dx"), 1e-5);
        for (name, param) in names.iter().zip(&params) {
            let want = file.get(case, &format!("d.{name}"));
            near(&format!("{case} {name}"), grads.of(param).unwrap(), &want, 1e-5);
        }
    }
}
