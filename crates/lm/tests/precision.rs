//! Models that compute in half precision: logits and gradients near those of f32, states and logits in f32.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{DType, Device, Tape, Tensor};
use alluvium_lm::cache::{load_prompt_cache, save_prompt_cache};
use alluvium_lm::{
    Batch, Cache, Checkpointing, FineTuneType, LanguageModel, LayerCache, LoraParameters, attach_low_rank,
    is_kept_in_f32, load, set_dtype,
};
use alluvium_ops::{CrossEntropyArgs, Reduction, cast, cross_entropy};
use std::collections::BTreeMap;
use std::path::Path;

/// How far logits may be from those of f32 activations, as a share of their size. An activation is rounded by at most
/// 2⁻⁹ of itself in bf16, in the mean by 2⁻⁹/√3. On their way through the two to four layers of these models the logits
/// meet about 40 roundings, whose errors are independent: √40 · 2⁻⁹/√3 is 0.7 %. Twice that is allowed.
const LOGITS: f64 = 0.015;
/// The same of the gradients of parameters: their way is twice as long, they begin at `p − 1` of targets that the models
/// have learned, and they cancel in sums over tokens. Most are 4 % away.
const GRADIENTS: f64 = 0.1;

/// The same of `A_log` and `dt_bias`: one element sums the gates of all tokens, whose gradients have both signs.
const GATES: f64 = 0.15;

fn model(name: &str) -> Box<dyn LanguageModel> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    load(&folder, &Device::cpu()).unwrap().model
}

/// Rounds every parameter that a run would train in `dtype`, and stores it as `stored`.
fn round(model: &mut dyn LanguageModel, dtype: DType, stored: DType) {
    model.visit_mut("", &mut |name, tensor| {
        if !is_kept_in_f32(&name) {
            *tensor = cast(&cast(tensor, dtype).unwrap(), stored).unwrap();
        }
    });
}

fn prompt() -> Vec<u32> {
    (0..90).map(|i| 1 + i * 7 % 83).collect()
}

fn read(model: &dyn LanguageModel, ids: &[u32], cache: &mut Cache) -> Tensor {
    let ids = Tensor::from_slice(ids, [1, ids.len()], &Device::cpu()).unwrap();
    model.forward_cached(&ids, cache).unwrap()
}

fn logits(model: &dyn LanguageModel) -> Vec<f32> {
    let hidden = read(model, &prompt(), &mut model.cache(1).unwrap());
    assert_eq!(hidden.dtype(), model.dtype());
    model.logits(&hidden).unwrap().to_vec::<f32>().unwrap()
}

/// ‖a − b‖ / ‖b‖.
fn gap(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let gap = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    gap / norm(&mut b.iter().map(|&b| f64::from(b)))
}

/// The mean loss of the prompt's next tokens, and the gradients of all parameters by name.
fn gradients(model: &mut dyn LanguageModel, keep: Checkpointing) -> (f32, BTreeMap<String, Tensor>) {
    let (tape, ids) = (Tape::new(), prompt());
    let (inputs, targets) = (&ids[..ids.len() - 1], &ids[1..]);
    model.visit_mut("", &mut |_, tensor| *tensor = tape.watch(tensor));
    let of = |data: &[u32]| Tensor::from_slice(data, [1, data.len()], &Device::cpu()).unwrap();
    let positions: Vec<u32> = (0..inputs.len() as u32).collect();
    let batch = Batch { ids: &of(inputs), positions: &of(&positions), cu_seqlens: None };
    let hidden = model.forward(&batch, keep).unwrap();
    let loss = cross_entropy(CrossEntropyArgs {
        x: &hidden.reshape([inputs.len(), hidden.shape().last()]).unwrap(),
        w: model.lm_head().dense().unwrap(),
        targets: &Tensor::from_slice(targets, [targets.len()], &Device::cpu()).unwrap(),
        ignore_index: None,
        reduction: Reduction::Mean,
        z_loss: 0.0,
        chunk: 33,
    })
    .unwrap();
    let mut grads = loss.backward().unwrap();
    let mut found = BTreeMap::new();
    model.visit("", &mut |name, tensor| {
        found.insert(name, grads.take(tensor).unwrap());
    });
    (loss.item().unwrap(), found)
}

#[test]
fn logits_in_bf16_are_near_those_of_f32() {
    for name in ["qwen3_5-f32", "qwen3_next-f32", "qwen3_5_moe-f32", "llama-f32", "qwen3-f32"] {
        let (mut wide, mut half) = (model(name), model(name));
        round(wide.as_mut(), DType::BF16, DType::F32);
        round(half.as_mut(), DType::BF16, DType::BF16);
        assert_eq!((wide.dtype(), half.dtype()), (DType::F32, DType::BF16));
        let (want, got) = (logits(wide.as_ref()), logits(half.as_ref()));
        let far = gap(&got, &want);
        assert!(far > 1e-4 && far < LOGITS, "{name}: {far}");
        assert_eq!(got, logits(half.as_ref()), "{name}: other bits the second time");
    }
}

#[test]
fn gradients_in_bf16_are_f32_and_near_those_of_f32() {
    for name in ["qwen3_5-f32", "qwen3_next-f32", "llama-f32"] {
        let (mut wide, mut half) = (model(name), model(name));
        round(wide.as_mut(), DType::BF16, DType::F32);
        round(half.as_mut(), DType::BF16, DType::BF16);
        let (loss, want) = gradients(wide.as_mut(), Checkpointing::None);
        let (half_loss, got) = gradients(half.as_mut(), Checkpointing::None);
        assert!((loss - half_loss).abs() < 0.005 * loss, "{name}: {half_loss} for {loss}");
        for (name_of, want) in &want {
            let got = &got[name_of];
            assert_eq!(got.dtype(), DType::F32, "{name}: {name_of}");
            let far = gap(&got.to_vec::<f32>().unwrap(), &want.to_vec::<f32>().unwrap());
            let bound = if is_kept_in_f32(name_of) { GATES } else { GRADIENTS };
            assert!(far < bound, "{name}: {name_of} is {far} away");
        }
        half.visit_mut("", &mut |_, tensor| *tensor = tensor.detach());
        let (again, recomputed) = gradients(half.as_mut(), Checkpointing::Layers);
        assert_eq!(again, half_loss);
        for (name_of, got) in &got {
            let bytes = |x: &Tensor| x.to_bytes().unwrap();
            assert_eq!(
                bytes(got),
                bytes(&recomputed[name_of]),
                "{name}: {name_of} differs where layers are recomputed"
            );
        }
    }
}

#[test]
fn quantized_models_and_other_dtypes_of_weights_compute_in_half_precision() {
    for (name, dtype) in [
        ("qwen3_5-q4g64", DType::BF16),
        ("qwen3_5-mxfp4", DType::BF16),
        ("qwen3_5_moe-bf16-q4g64", DType::BF16),
        ("qwen3_5-bf16", DType::F16),
        ("qwen3_5-f32", DType::BF16),
    ] {
        let (wide, mut half) = (model(name), model(name));
        let stored = |model: &dyn LanguageModel| model.lm_head().quantized().map(|q| q.scales.dtype());
        set_dtype(half.as_mut(), dtype).unwrap();
        assert_eq!(stored(half.as_ref()), stored(wide.as_ref()));
        let far = gap(&logits(half.as_ref()), &logits(wide.as_ref()));
        assert!(far > 1e-5 && far < LOGITS, "{name} in {dtype}: {far}");
    }
}

#[test]
fn gates_and_matrices_keep_their_dtype_and_f32_comes_back() {
    let mut model = model("qwen3_5-f16");
    set_dtype(model.as_mut(), DType::BF16).unwrap();
    let mut seen = [0; 3];
    model.visit("", &mut |name, tensor| {
        let (kind, want) = match (is_kept_in_f32(&name), name.contains("norm") || name.contains("conv1d")) {
            (true, _) => (0, DType::F32),
            (_, true) => (1, DType::BF16),
            _ => (2, DType::F16),
        };
        seen[kind] += 1;
        assert_eq!(tensor.dtype(), want, "{name}");
    });
    assert!(seen.iter().all(|&n| n > 0), "{seen:?}");
    set_dtype(model.as_mut(), DType::F32).unwrap();
    assert_eq!(model.dtype(), DType::F32);
    let error = set_dtype(model.as_mut(), DType::U8).unwrap_err().to_string();
    assert_eq!(error, "set_dtype: a model cannot compute in u8, expected f32, f16 or bf16");
}

#[test]
fn token_by_token_keys_are_bf16_and_states_f32() {
    let mut half = model("qwen3_5-f32");
    set_dtype(half.as_mut(), DType::BF16).unwrap();
    let (mut cache, mut steps) = (half.cache(1).unwrap(), Vec::new());
    for id in prompt() {
        let hidden = read(half.as_ref(), &[id], &mut cache);
        steps.extend(half.logits(&hidden).unwrap().to_vec::<f32>().unwrap());
    }
    assert!(gap(&steps, &logits(half.as_ref())) < LOGITS);
    let mut kinds = [0; 2];
    let mut check = |cache: &mut Cache| {
        for layer in &mut cache.layers {
            match layer {
                LayerCache::Delta(delta) => {
                    kinds[0] += 1;
                    assert_eq!(delta.conv_state.as_ref().unwrap().dtype(), DType::BF16);
                    assert_eq!(delta.recurrent_state.as_ref().unwrap().dtype(), DType::F32);
                }
                LayerCache::Attention(attention) => {
                    kinds[1] += 1;
                    assert_eq!(attention.view(0).unwrap().keys.dtype(), DType::BF16);
                }
            }
        }
    };
    check(&mut cache);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    save_prompt_cache(&path, &cache, &BTreeMap::new()).unwrap();
    let (mut loaded, _) = load_prompt_cache(&path, &half.cache_shapes(), half.dtype(), &Device::cpu()).unwrap();
    check(&mut loaded);
    let next = |cache: &mut Cache| read(half.as_ref(), &[5], cache).to_bytes().unwrap();
    assert_eq!(next(&mut loaded), next(&mut cache));
    assert!(kinds.iter().all(|&n| n > 0), "{kinds:?}");
}

#[test]
fn adapters_compute_in_the_dtype_of_the_activations() {
    for kind in [FineTuneType::Lora, FineTuneType::Dora] {
        let parameters = LoraParameters { rank: 4, ..LoraParameters::default() };
        let adapted = |dtype: DType| {
            let mut model = model("qwen3_5-f32");
            attach_low_rank(model.as_mut(), kind, &parameters, -1, 1).unwrap();
            // an update of zero would hide what is done with it
            model.visit_mut("", &mut |name, tensor| {
                if name.ends_with("lora_b") {
                    let wave: Vec<f32> = (0..tensor.elements()).map(|i| 0.01 * (i as f32).sin()).collect();
                    *tensor = Tensor::from_slice(&wave, tensor.shape(), tensor.device()).unwrap();
                }
            });
            set_dtype(model.as_mut(), dtype).unwrap();
            logits(model.as_ref())
        };
        let far = gap(&adapted(DType::BF16), &adapted(DType::F32));
        assert!(far > 1e-5 && far < 2.0 * LOGITS, "{kind}: {far}");
    }
}
