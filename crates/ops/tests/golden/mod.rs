//! The files that other implementations wrote, and how near is near.
#![allow(dead_code)]

use alluvium_core::{DType, Device, Tensor};
use std::path::Path;

/// A safetensors file: the length of a JSON header, the header, the elements.
pub(crate) struct Golden {
    bytes: Vec<u8>,
    header: serde_json::Value,
    data: usize,
}

impl Golden {
    /// A file of `fixtures/ops`.
    pub(crate) fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/ops").join(name);
        let bytes = std::fs::read(path).unwrap();
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..data]).unwrap();
        Golden { bytes, header, data }
    }

    /// A tensor of a case.
    pub(crate) fn get(&self, case: &str, name: &str) -> Tensor {
        let entry = &self.header[format!("{case}/{name}")];
        let numbers = |key: &str| -> Vec<usize> {
            let list = entry[key].as_array().unwrap_or_else(|| panic!("{case}/{name} is not in the file"));
            list.iter().map(|n| n.as_u64().unwrap() as usize).collect()
        };
        let dtype = match entry["dtype"].as_str() {
            Some("F32") => DType::F32,
            Some("F16") => DType::F16,
            Some("BF16") => DType::BF16,
            // mlx has signed ids where ours have no sign
            Some("U32" | "I32") => DType::U32,
            Some("U8") => DType::U8,
            other => panic!("{case}/{name} is {other:?}"),
        };
        let shape = alluvium_core::Shape::new(&numbers("shape")).unwrap();
        let at = numbers("data_offsets");
        let bytes = &self.bytes[self.data + at[0]..self.data + at[1]];
        Tensor::from_bytes(bytes, shape, dtype, &Device::cpu()).unwrap()
    }
}

/// Fails unless the largest difference is within `bound` of the largest number.
pub(crate) fn near(what: &str, got: &Tensor, want: &Tensor, bound: f32) {
    let (got, want) = (got.to_floats().unwrap(), want.to_floats().unwrap());
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0.0f32, |size, x| size.max(x.abs()));
    let worst = got.iter().zip(&want).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(size > 0.0 && worst <= bound * size, "{what}: off by {worst}, the largest number is {size}");
}
