//! Conversions give the tensors of `mlx_lm.convert`, byte for byte. Another folder like `fixtures` in `ALLUVIUM_FIXTURES` is
//! compared in place of it.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{DType, Device, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::quantize::format::parse_packing;
use alluvium_lm::{Change, MixedRecipe, QuantConfig, convert, load};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    let ours = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    std::env::var_os("ALLUVIUM_FIXTURES").map_or(ours, PathBuf::from).join("models").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Every tensor of a folder: dtype, shape, bytes.
fn tensors(folder: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let file = safetensors::read(&path).unwrap();
            for (name, entry) in file.entries() {
                let tensor = file.tensor(name, &Device::cpu()).unwrap();
                all.insert(
                    name.to_owned(),
                    (entry.dtype.to_string(), entry.shape.to_vec(), tensor.to_bytes().unwrap()),
                );
            }
        }
    }
    all
}

fn quantize(mode: &str, bits: Option<usize>, group: Option<usize>) -> Change {
    Change::Quantize(QuantConfig::of(parse_packing(mode, bits, group).unwrap()))
}

fn converted(from: &str, dtype: Option<DType>, change: &Change) -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("new");
    convert(&fixture(from), &to, dtype, change, &mut |_, _| ()).unwrap();
    (place, to)
}

fn assert_same(ours: &Path, theirs: &str) {
    let (a, b) = (tensors(ours), tensors(&fixture(theirs)));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{theirs}");
    for (name, (dtype, shape, bytes)) in &a {
        let (want_dtype, want_shape, want) = &b[name];
        assert_eq!((dtype, shape), (want_dtype, want_shape), "{theirs}: {name}");
        let differ = bytes.iter().zip(want).filter(|(a, b)| a != b).count();
        assert!(bytes == want, "{theirs}: {name} differs in {differ} of {} bytes", want.len());
    }
}

#[test]
fn the_layout_of_transformers_becomes_that_of_mlx() {
    for model in ["qwen3_5", "qwen3_next", "qwen3_5_moe"] {
        let (_place, to) = converted(&format!("{model}-f32-hf"), None, &Change::None);
        assert_same(&to, &format!("{model}-f32"));
        assert!(json(&to.join("config.json")).get("vision_config").is_none());
        for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"] {
            assert!(to.join(file).exists(), "{file}");
        }
    }
}

#[test]
fn four_bits_of_either_layout_are_those_of_mlx_lm() {
    for model in ["qwen3_5", "qwen3_next"] {
        for from in ["f32", "f32-hf"] {
            let (_place, to) = converted(&format!("{model}-{from}"), None, &quantize("affine", Some(4), Some(64)));
            assert_same(&to, &format!("{model}-q4g64"));
        }
    }
}

#[test]
fn every_kind_of_conversion_is_that_of_mlx_lm() {
    let (f16, bf16) = (Some(DType::F16), Some(DType::BF16));
    let mut mixed = QuantConfig::of(parse_packing("affine", Some(3), None).unwrap());
    mixed.mixed = Some(MixedRecipe::ThreeSix);
    for (from, to, dtype, change) in [
        ("llama-f32", "llama-q4g64", None, quantize("affine", None, None)),
        ("qwen3-f32", "qwen3-bf16-q4g64", bf16, quantize("affine", None, None)),
        ("qwen3_next-f32", "qwen3_next-bf16", bf16, Change::None),
        ("qwen3_next-f32", "qwen3_next-q8g64", None, quantize("affine", Some(8), None)),
        ("qwen3_next-f32", "qwen3_next-bf16-q4g64", bf16, quantize("affine", None, None)),
        ("qwen3_next-f32", "qwen3_next-mxfp4", bf16, quantize("mxfp4", None, None)),
        ("qwen3_next-f32", "qwen3_next-nvfp4", bf16, quantize("nvfp4", None, None)),
        ("qwen3_next-f32", "qwen3_next-mxfp8", bf16, quantize("mxfp8", None, None)),
        ("qwen3_5-f32", "qwen3_5-bf16", bf16, Change::None),
        ("qwen3_5-f32", "qwen3_5-bf16-sharded", bf16, Change::None),
        ("qwen3_5-f32", "qwen3_5-f16", f16, Change::None),
        ("qwen3_5-f32", "qwen3_5-bf16-q4g64", bf16, quantize("affine", None, None)),
        ("qwen3_5-f32", "qwen3_5-bf16-q8g64", bf16, quantize("affine", Some(8), None)),
        ("qwen3_5-f32", "qwen3_5-bf16-q3g32", bf16, quantize("affine", Some(3), Some(32))),
        ("qwen3_5-f32", "qwen3_5-mxfp4", bf16, quantize("mxfp4", None, None)),
        ("qwen3_5-f32", "qwen3_5-nvfp4", bf16, quantize("nvfp4", None, None)),
        ("qwen3_5-f32", "qwen3_5-bf16-mixed_3_6", bf16, Change::Quantize(mixed)),
        ("qwen3_5_moe-f32", "qwen3_5_moe-bf16-q4g64", bf16, quantize("affine", None, None)),
        ("qwen3_5_moe-f32-hf", "qwen3_5_moe-bf16-q4g64", bf16, quantize("affine", None, None)),
    ] {
        let (_place, ours) = converted(from, dtype, &change);
        assert_same(&ours, to);
        let (ours, theirs) = (json(&ours.join("config.json")), json(&fixture(to).join("config.json")));
        let plain = |config: &Value| without_default_modes(&config["quantization"]);
        assert_eq!(plain(&ours), plain(&theirs), "{to}");
        assert_eq!(ours["quantization"], ours["quantization_config"]);
    }
}

/// An entry that says `affine` means what one without a mode does.
fn without_default_modes(block: &Value) -> Value {
    let mut block = block.clone();
    for entry in block.as_object_mut().into_iter().flat_map(|block| block.values_mut()) {
        if let Some(entry) =
            entry.as_object_mut().filter(|entry| entry.get("mode").is_some_and(|mode| mode == "affine"))
        {
            entry.remove("mode");
        }
    }
    block
}

#[test]
fn a_model_made_plain_again_computes_the_same() {
    for from in ["qwen3_next-q4g64", "qwen3_5-mxfp4"] {
        let (_place, to) = converted(from, Some(DType::F32), &Change::Dequantize);
        assert!(tensors(&to).values().all(|(dtype, ..)| dtype == "F32"));
        assert!(json(&to.join("config.json")).get("quantization").is_none());
        let logits = |folder: &Path| {
            let model = load(folder, &Device::cpu()).unwrap().model;
            let ids = Tensor::from_slice(&[5u32, 9, 200, 31], [1, 4], &Device::cpu()).unwrap();
            let hidden = model.forward_cached(&ids, &mut model.cache(1).unwrap()).unwrap();
            model.lm_head().linear(&hidden).unwrap().to_vec::<f32>().unwrap()
        };
        let far = logits(&to).iter().zip(logits(&fixture(from))).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 5e-5, "{from}: {far}");
    }
}

#[test]
fn modules_can_have_bits_of_their_own_and_stay_plain() {
    let mut scheme = QuantConfig::of(parse_packing("affine", Some(4), None).unwrap());
    scheme.modules.push(("lm_head".to_owned(), None));
    scheme.modules.push(("v_proj".to_owned(), Some(parse_packing("affine", Some(8), Some(32)).unwrap())));
    let (_place, to) = converted("qwen3-f32", None, &Change::Quantize(scheme));
    let all = tensors(&to);
    assert_eq!(all["lm_head.weight"].0, "F32");
    assert_eq!(all["model.layers.0.self_attn.v_proj.scales"].1[1], 2);
    assert_eq!(json(&to.join("config.json"))["quantization"]["lm_head"], false);
    let model = load(&to, &Device::cpu()).unwrap().model;
    assert_eq!(model.lm_head().dense().unwrap().dtype(), DType::F32);

    let unknown = QuantConfig {
        modules: vec![("nothing".to_owned(), None)],
        ..QuantConfig::of(parse_packing("affine", None, None).unwrap())
    };
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("new");
    let error = convert(&fixture("qwen3-f32"), &to, None, &Change::Quantize(unknown), &mut |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("no module has `nothing` in its name"), "{error}");
    assert!(!to.exists() && std::fs::read_dir(place.path()).unwrap().next().is_none());
}

fn refused(from: &Path, change: &Change) -> String {
    let place = tempfile::tempdir().unwrap();
    let error = convert(from, &place.path().join("new"), None, change, &mut |_, _| ()).unwrap_err().to_string();
    assert!(std::fs::read_dir(place.path()).unwrap().next().is_none());
    error
}

#[test]
fn what_is_quantized_is_never_called_something_else() {
    let mut mixed = QuantConfig::of(parse_packing("affine", Some(4), None).unwrap());
    mixed.mixed = Some(MixedRecipe::ThreeSix);
    let own = |module: &str, packing| {
        let scheme = QuantConfig::of(parse_packing("affine", Some(4), None).unwrap());
        Change::Quantize(QuantConfig { modules: vec![(module.to_owned(), packing)], ..scheme })
    };
    let eight = parse_packing("affine", Some(8), None).unwrap();
    for (from, change, want) in [
        (
            "qwen3_5-q4g64",
            quantize("affine", Some(8), None),
            "is quantized already, 4 bits in groups of 64, and 8 bits in groups of 64 are asked for; make the model plain first \
             (convert -d)",
        ),
        ("qwen3_5-q4g64", quantize("affine", Some(4), Some(32)), "4 bits in groups of 32 are asked for"),
        ("qwen3_5-q4g64", quantize("mxfp4", None, None), "and mxfp4, 4 bits in groups of 32 are asked for"),
        ("qwen3_5-q4g64", Change::Quantize(mixed), "and 6 bits in groups of 64 are asked for"),
        ("qwen3_5-q4g64", own("lm_head", Some(eight)), "module `language_model.lm_head` is quantized already"),
        ("qwen3_5-q4g64", own("lm_head", None), "and unquantized values are asked for"),
        ("qwen3_5-mxfp4", quantize("affine", None, None), "mxfp4, 4 bits in groups of 32, and 4 bits in groups of 64"),
        ("qwen3_5-bf16-q3g32", quantize("affine", Some(3), Some(128)), "and 3 bits in groups of 128 are asked for"),
    ] {
        let error = refused(&fixture(from), &change);
        assert!(error.contains(want), "{from}, {want}: {error}");
    }
}

#[test]
fn what_is_quantized_as_asked_stays_and_the_rest_is_quantized() {
    let place = tempfile::tempdir().unwrap();
    for (from, dtype, mode) in [
        ("qwen3_5-q4g64", DType::F32, "affine"),
        ("qwen3_next-q4g64", DType::F32, "affine"),
        ("qwen3_next-mxfp4", DType::BF16, "mxfp4"),
    ] {
        let to = place.path().join(from);
        let done = convert(&fixture(from), &to, Some(dtype), &quantize(mode, None, None), &mut |_, _| ()).unwrap();
        assert_same(&to, from);
        assert!(done.packed > 0 && done.packed_before == done.packed, "{done:?}");
        assert_eq!(
            json(&to.join("config.json"))["quantization"],
            json(&fixture(from).join("config.json"))["quantization"]
        );
    }
    let part = QuantConfig {
        modules: vec![("v_proj".to_owned(), Some(parse_packing("affine", Some(8), None).unwrap()))],
        ..QuantConfig::of(parse_packing("affine", Some(4), None).unwrap())
    };
    let whole = part.clone();
    let part = QuantConfig { modules: [part.modules, vec![("lm_head".to_owned(), None)]].concat(), ..part };
    let (first, second) = (place.path().join("first"), place.path().join("second"));
    let done = convert(&fixture("qwen3-f32"), &first, None, &Change::Quantize(part), &mut |_, _| ()).unwrap();
    assert_eq!(done.packed_before, 0);
    let again = convert(&first, &second, None, &Change::Quantize(whole), &mut |_, _| ()).unwrap();
    assert_eq!((again.packed, again.packed_before), (done.packed + 1, done.packed));
    let block = &json(&second.join("config.json"))["quantization"];
    assert_eq!((&block["lm_head"]["bits"], &block["model.layers.0.self_attn.v_proj"]["bits"]), (&4.into(), &8.into()));
    assert_eq!(tensors(&second)["lm_head.weight"].0, "U32");
    load(&second, &Device::cpu()).unwrap();
}

#[test]
fn a_block_that_means_other_packings_than_the_tensors_have_is_put_right() {
    let place = tempfile::tempdir().unwrap();
    let from = place.path().join("from");
    std::fs::create_dir(&from).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("llama-q4g64").join(name), from.join(name)).unwrap();
    }
    let mut config = json(&from.join("config.json"));
    for key in ["quantization", "quantization_config"] {
        config[key] = serde_json::json!({"bits": 8, "group_size": 64});
    }
    std::fs::write(from.join("config.json"), config.to_string()).unwrap();
    let to = place.path().join("to");
    convert(&from, &to, None, &quantize("affine", Some(4), None), &mut |_, _| ()).unwrap();
    assert_eq!(
        json(&to.join("config.json"))["quantization"]["model.embed_tokens"],
        serde_json::json!({"bits": 4, "group_size": 64})
    );
}

#[test]
fn a_folder_that_exists_is_left_alone() {
    let place = tempfile::tempdir().unwrap();
    let error =
        convert(&fixture("qwen3-f32"), place.path(), None, &Change::None, &mut |_, _| ()).unwrap_err().to_string();
    assert!(error.ends_with("it exists already; choose another folder or remove it"), "{error}");
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_stale_staging_folder_never_becomes_part_of_a_model() {
    let place = tempfile::tempdir().unwrap();
    let to = place.path().join("new");
    let stale = place.path().join(format!(".new.{}.partial", std::process::id()));
    std::fs::create_dir(&stale).unwrap();
    std::fs::write(stale.join("model-00002-of-00003.safetensors"), b"stale").unwrap();
    convert(&fixture("llama-f32"), &to, None, &Change::None, &mut |_, _| ()).unwrap();
    assert!(!names(&to).contains(&"model-00002-of-00003.safetensors".to_owned()));
    load(&to, &Device::cpu()).unwrap();
    assert_eq!(names(&stale), ["model-00002-of-00003.safetensors"]);
}

#[test]
fn a_conversion_into_what_is_there_changes_nothing() {
    let place = tempfile::tempdir().unwrap();
    let refuses = |to: &Path| {
        let error = convert(&fixture("llama-f32"), to, None, &Change::None, &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().contains("it exists already"), "{error}");
    };
    let [folder, file] = ["folder", "file"].map(|name| place.path().join(name));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(&file, b"another's").unwrap();
    refuses(&folder);
    refuses(&file);
    #[cfg(unix)]
    {
        let link = place.path().join("link");
        std::os::unix::fs::symlink(place.path().join("nowhere"), &link).unwrap();
        refuses(&link);
        std::fs::remove_file(&link).unwrap();
    }
    assert_eq!(names(place.path()), ["file", "folder"]);
    assert!(names(&folder).is_empty());
    assert_eq!(std::fs::read(&file).unwrap(), b"another's");
}
