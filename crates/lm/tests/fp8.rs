//! Matrices in fp8 with a scale for each block are read as the values that they stand for.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::rng::Rng;
use alluvium_core::{DType, Device, Shape, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::{Change, Config, LanguageModel, convert, load};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

const BLOCK: [usize; 2] = [24, 40];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// The value of a code, from the definition: sign, exponent with bias 7, mantissa of three bits.
fn value(code: u8) -> f64 {
    let (sign, exponent, mantissa) =
        (1 - 2 * i32::from(code >> 7), i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
    let size = if exponent == 0 { mantissa * 2f64.powi(-6) } else { (1.0 + mantissa) * 2f64.powi(exponent - 7) };
    f64::from(sign) * size
}

/// Writes a safetensors file of tensors that no dtype of ours has.
fn write_raw(path: &Path, tensors: &[(String, &str, Vec<usize>, Vec<u8>)]) {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let end = data.len() + bytes.len();
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [data.len(), end]}));
        data.extend(bytes);
    }
    let header = Value::from(header).to_string().into_bytes();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
}

/// Two copies of a checkpoint: its projections in fp8 with random codes and scales, and as the values of those.
fn both(source: &Path, scale_dtype: DType) -> [tempfile::TempDir; 2] {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let file = safetensors::read(source.join("model.safetensors")).unwrap();
    let mut rng = Rng::new(7, "fp8");
    let (mut packed, mut plain) = (Vec::new(), Vec::new());
    for name in file.names() {
        let tensor = file.tensor(name, &Device::cpu()).unwrap();
        let dims = tensor.shape().dims().to_vec();
        if !name.contains("_proj") || name.contains("visual") || dims.len() < 2 {
            packed.push((name.to_owned(), "F32", dims, tensor.to_bytes().unwrap().to_vec()));
            plain.push((name.to_owned(), tensor));
            continue;
        }
        let [.., rows, columns] = dims[..] else { panic!("{name}") };
        let blocks = [rows.div_ceil(BLOCK[0]), columns.div_ceil(BLOCK[1])];
        let matrices = tensor.elements() / (rows * columns);
        // codes of up to 1, scales that make a matrix of the usual size
        let codes: Vec<u8> = (0..tensor.elements())
            .map(|_| (rng.between(0.0, 1.0) * 56.0) as u8 | ((rng.between(0.0, 2.0) as u8) << 7))
            .collect();
        let scale_shape = [&dims[..dims.len() - 2], &blocks[..]].concat();
        let scales: Vec<f32> = (0..matrices * blocks[0] * blocks[1]).map(|_| rng.between(0.02, 0.2) as f32).collect();
        let scales = Tensor::from_slice(&scales, Shape::new(&scale_shape).unwrap(), &Device::cpu()).unwrap();
        let scales = alluvium_ops::cast(&scales, scale_dtype).unwrap();
        let rounded = alluvium_ops::cast(&scales, DType::F32).unwrap().to_vec::<f32>().unwrap();
        let element = |(at, &code): (usize, &u8)| {
            let (matrix, row, column) = (at / (rows * columns), at / columns % rows, at % columns);
            let scale = rounded[(matrix * blocks[0] + row / BLOCK[0]) * blocks[1] + column / BLOCK[1]];
            (value(code) * f64::from(scale)) as f32
        };
        let values: Vec<f32> = codes.iter().enumerate().map(element).collect();
        plain.push((name.to_owned(), Tensor::from_slice(&values, tensor.shape(), &Device::cpu()).unwrap()));
        packed.push((name.to_owned(), "F8_E4M3", dims, codes));
        let name = format!("{name}_scale_inv");
        packed.push((
            name,
            if scale_dtype == DType::F32 { "F32" } else { "BF16" },
            scale_shape,
            scales.to_bytes().unwrap().to_vec(),
        ));
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    std::fs::write(folders[1].path().join("config.json"), config.to_string()).unwrap();
    let plain: Vec<(String, &Tensor)> = plain.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    safetensors::write(folders[1].path().join("model.safetensors"), &plain, &[]).unwrap();
    config["quantization_config"] = json!({
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": BLOCK,
        "modules_to_not_convert": ["lm_head", "model.visual"],
    });
    std::fs::write(folders[0].path().join("config.json"), config.to_string()).unwrap();
    write_raw(&folders[0].path().join("model.safetensors"), &packed);
    folders
}

fn logits(model: &dyn LanguageModel) -> Vec<f32> {
    let ids = Tensor::from_slice(&[5u32, 9, 200, 31], [1, 4], &Device::cpu()).unwrap();
    let hidden = model.forward_cached(&ids, &mut model.cache(1).unwrap()).unwrap();
    model.lm_head().linear(&hidden).unwrap().to_vec().unwrap()
}

#[test]
fn fp8_with_block_scales_is_read_and_converted_as_its_values() {
    for name in ["hf/qwen3_5-text", "hf/qwen3_5_moe-vl", "hf/qwen3_next", "models/qwen3_5_moe-f32-hf"] {
        for scales in [DType::F32, DType::BF16] {
            let [packed, plain] = both(&fixture(name), scales);
            let want = logits(load(plain.path(), &Device::cpu()).unwrap().model.as_ref());
            assert!(want.iter().all(|x| x.is_finite()) && want.iter().any(|x| x.abs() > 0.1));
            let ours = logits(load(packed.path(), &Device::cpu()).unwrap().model.as_ref());
            assert!(ours == want, "{name}, scales {scales}");
            let to = tempfile::tempdir().unwrap();
            let to = to.path().join("out");
            convert(packed.path(), &to, None, &Change::None, &mut |_, _| ()).unwrap();
            assert!(logits(load(&to, &Device::cpu()).unwrap().model.as_ref()) == want, "{name} converted");
            assert!(Config::read(&to).unwrap().json().get("quantization_config").is_none());
        }
    }
}

#[test]
fn scales_of_other_blocks_are_refused_in_words() {
    let [packed, _] = both(&fixture("hf/qwen3_5-text"), DType::F32);
    let path = packed.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    for (block, want) in [
        (json!([64, 40]), "_scale_inv`: it is ["),
        (json!([0, 40]), "`weight_block_size` is [0,40], expected two positive integers"),
    ] {
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["quantization_config"]["weight_block_size"] = block;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = load(packed.path(), &Device::cpu()).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}
