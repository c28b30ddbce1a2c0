//! The files that other implementations wrote, and how near is near.
#![allow(dead_code)]

use alluvium_core::{DType, Device, Tensor};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// How near half precision is: a few roundings, since mlx also rounds between the steps of a formula.
pub(crate) const BF16: f32 = 4.0 / 128.0;
/// As [`BF16`].
pub(crate) const F16: f32 = 4.0 / 1024.0;

/// A safetensors file of `fixtures/ops` and what its manifest says of it. It remembers which tensors were asked for.
pub(crate) struct Golden {
    bytes: Vec<u8>,
    header: Value,
    data: usize,
    cases: Value,
    read: RefCell<BTreeSet<String>>,
}

impl Golden {
    /// A group of `fixtures/ops`, or of another folder like `fixtures` in `ALLUVIUM_FIXTURES`.
    pub(crate) fn open(group: &str) -> Self {
        let ours = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
        let root = std::env::var_os("ALLUVIUM_FIXTURES").map_or(ours, PathBuf::from).join("ops");
        let manifest: Value = serde_json::from_slice(&std::fs::read(root.join("manifest.json")).unwrap()).unwrap();
        let group = &manifest["groups"][group];
        let bytes = std::fs::read(root.join(group["file"].as_str().unwrap())).unwrap();
        let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = serde_json::from_slice(&bytes[8..data]).unwrap();
        Golden { bytes, header, data, cases: group["cases"].clone(), read: RefCell::default() }
    }

    /// The cases of the manifest whose name begins so.
    pub(crate) fn cases(&self, beginning: &str) -> Vec<String> {
        self.cases.as_object().unwrap().keys().filter(|case| case.starts_with(beginning)).cloned().collect()
    }

    /// A parameter of a case; `Null` where it has none of this name.
    pub(crate) fn param(&self, case: &str, name: &str) -> &Value {
        &self.cases[case]["params"][name]
    }

    /// How near a case is to be: f32 as given, half precision by its roundings.
    pub(crate) fn bound(&self, case: &str, single: f32) -> f32 {
        match self.param(case, "dtype").as_str() {
            Some("bf16") => BF16,
            Some("f16") => F16,
            _ => single,
        }
    }

    /// Whether a case has a tensor.
    pub(crate) fn has(&self, case: &str, name: &str) -> bool {
        self.header.get(format!("{case}/{name}")).is_some()
    }

    /// A tensor of a case.
    pub(crate) fn get(&self, case: &str, name: &str) -> Tensor {
        let key = format!("{case}/{name}");
        let entry = &self.header[&key];
        self.read.borrow_mut().insert(key);
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

    /// Fails unless every tensor of every case was asked for, but for these, each with the reason: `case/tensor`, where
    /// `*` stands for anything. One that leaves nothing out fails, too.
    pub(crate) fn nothing_is_left_but(&self, left_out: &[(&str, &str)]) {
        let read = self.read.borrow();
        let all = self.cases.as_object().unwrap().iter().flat_map(|(case, entry)| {
            entry["tensors"].as_object().unwrap().keys().map(move |tensor| format!("{case}/{tensor}"))
        });
        let left: Vec<String> = all.filter(|name| !read.contains(name)).collect();
        let missed: Vec<&String> = left.iter().filter(|name| !left_out.iter().any(|(p, _)| fits(p, name))).collect();
        assert!(missed.is_empty(), "nothing is compared with {missed:?}");
        for (pattern, why) in left_out {
            assert!(!why.is_empty() && left.iter().any(|name| fits(pattern, name)), "`{pattern}` leaves nothing out");
        }
    }
}

/// Whether a name is what a pattern with `*` says.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    (0..=name.len()).any(|at| name.is_char_boundary(at) && fits(rest, &name[at..]))
}

/// Fails unless the largest difference is within `bound` of the largest number.
pub(crate) fn near(what: &str, got: &Tensor, want: &Tensor, bound: f32) {
    let (got, want) = (got.to_floats().unwrap(), want.to_floats().unwrap());
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0.0f32, |size, x| size.max(x.abs()));
    let worst = got.iter().zip(&want).fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()));
    assert!(size > 0.0 && worst <= bound * size, "{what}: off by {worst}, the largest element is {size}");
}
