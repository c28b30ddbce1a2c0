//! A program tells errors apart by their kind, whatever their text says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use alluvium::core::cpu::Cpu;
use alluvium::core::gpu::Gpu;
use alluvium::core::{Kind, Tape};
use alluvium::ops::{argmax, rms_norm};
use alluvium::{DType, Device, Error, Tensor, lm};
use serde_json::json;
use std::path::Path;

fn ones<const N: usize>(shape: [usize; N], device: &Device) -> Tensor {
    Tensor::full(shape, 1.0, device).unwrap()
}

fn error<T>(result: Result<T, Error>) -> Error {
    result.err().expect("the call should fail")
}

#[test]
fn a_wrong_call_is_told_apart_by_what_is_wrong_with_it() {
    let cpu = Device::cpu();
    let (x, w) = (ones([2, 8], &cpu), ones([8], &cpu));
    let shape = error(rms_norm(&x, &ones([4], &cpu), 1e-6));
    assert!(matches!(shape.kind(), Kind::Shape { op: "rms_norm", arg: "w", .. }), "{shape}");
    let dtype = error(rms_norm(&Tensor::zeros([2, 8], DType::U32, &cpu).unwrap(), &w, 1e-6));
    assert!(matches!(dtype.kind(), Kind::Dtype { op: "rms_norm", arg: "x", got: DType::U32, .. }), "{dtype}");
    let value = error(rms_norm(&x, &w, -1.0));
    assert!(matches!(value.kind(), Kind::Value { what: "rms_norm", .. }), "{value}");
    let other = Cpu::builder().threads(1).open().unwrap().into();
    let device = error(rms_norm(&x, &ones([8], &other), 1e-6));
    assert!(matches!(device.kind(), Kind::Device { op: "rms_norm", args: ["x", "w"], .. }), "{device}");
    let tape = Tape::new();
    let gradient = error(argmax(&tape.watch(&x)));
    assert!(matches!(gradient.kind(), Kind::NoGradient { op: "argmax", .. }), "{gradient}");
}

#[test]
fn memory_that_runs_out_and_a_missing_gpu_have_kinds() {
    let small = Cpu::builder().memory_limit(1 << 20).open().unwrap().into();
    let memory = error(Tensor::zeros([1 << 20], DType::F32, &small));
    assert!(matches!(memory.kind(), Kind::Memory { limit: Some(limit), .. } if *limit == 1 << 20), "{memory}");
    let gpu = error(Device::open("wgpu:999", Gpu::builder()));
    assert!(matches!(gpu.kind(), Kind::Gpu { .. }), "{gpu}");
}

#[test]
fn a_malformed_file_a_missing_one_and_an_unknown_model_are_three_kinds() {
    let folder = tempfile::tempdir().unwrap();
    let load = |config: &str| {
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        error(lm::Config::read(folder.path()).and_then(|config| lm::initialize(&config, 0, &Device::cpu())))
    };
    let malformed = load("{\"model_type\": ");
    assert!(matches!(malformed.kind(), Kind::File { path, .. } if path.ends_with("config.json")), "{malformed}");
    let unknown = load(&json!({"model_type": "perceptron"}).to_string());
    assert!(matches!(unknown.kind(), Kind::Unsupported { path, .. } if path.ends_with("config.json")), "{unknown}");
    let activation = json!({
        "model_type": "llama", "hidden_act": "gelu", "hidden_size": 8, "intermediate_size": 8, "vocab_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
    });
    let unknown = load(&activation.to_string());
    assert!(matches!(unknown.kind(), Kind::Unsupported { why, .. } if why.contains("hidden_act")), "{unknown}");
    let missing = error(lm::formats::safetensors::read(Path::new("/no/such/file.safetensors")));
    assert!(matches!(missing.kind(), Kind::Io { doing: "read", .. }), "{missing}");
}
