//! Small models of random weights give the logits and tokens of mlx-lm: types of models and keys that no trained golden has.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{Device, Tape, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::perplexity::{logits, logsumexp};
use alluvium_lm::{Batch, Change, Checkpointing, LanguageModel, convert_to_transformers, load};
use alluvium_ops::{CrossEntropyArgs, Reduction, argmax, cross_entropy};
use serde_json::Value;
use std::path::PathBuf;

/// How far logits may be, as a share of the largest one: sums of f32 in another order.
const BOUND: f64 = 1e-5;

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The hidden states of tokens that follow those in a cache, `[T, D]`.
fn read(model: &dyn LanguageModel, ids: &[u32], cache: &mut alluvium_lm::Cache) -> Tensor {
    let ids = Tensor::from_slice(ids, [1, ids.len()], model.device()).unwrap();
    let hidden = model.forward_cached(&ids, cache).unwrap();
    hidden.reshape([ids.elements(), hidden.shape().last()]).unwrap()
}

fn far(ours: &[f64], theirs: &[f64], scale: f64) -> bool {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).any(|(a, b)| (a - b).abs().is_nan() || (a - b).abs() > BOUND * scale)
}

#[test]
fn random_models_give_the_logits_and_tokens_of_mlx_lm() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/random_models");
    let (mut faults, mut compared) = (Vec::new(), 0);
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = load(&folder, &Device::cpu()).unwrap().model;
        let prompt = ids(&expected["ids"]);
        let mut cache = model.cache(1).unwrap();
        let hidden = read(model.as_ref(), &prompt, &mut cache);
        let last = |hidden: &Tensor| {
            let rows = hidden.shape()[0];
            logits(model.as_ref(), &hidden.rows(rows - 1, 1).unwrap()).unwrap()
        };
        let want = numbers(&expected["last_logits"]);
        let scale = want.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        let ours: Vec<f64> = last(&hidden).to_vec::<f32>().unwrap().into_iter().map(f64::from).collect();
        if far(&ours, &want, scale) {
            faults.push(format!("{name}: the last logits differ"));
        }
        if far(&logsumexp(model.as_ref(), &hidden).unwrap(), &numbers(&expected["logsumexp"]), scale) {
            faults.push(format!("{name}: a logsumexp differs"));
        }
        let (mut hidden, mut made) = (hidden, Vec::new());
        while made.len() < 16 {
            made.extend(argmax(&last(&hidden)).unwrap().to_vec::<u32>().unwrap());
            hidden = read(model.as_ref(), &made[made.len() - 1..], &mut cache);
        }
        if made != ids(&expected["greedy"]) {
            faults.push(format!("{name}: {made:?}, expected {}", expected["greedy"]));
        }
        compared += 1;
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert_eq!(compared, 7);
}

/// The loss of predicting each token of a prompt from those before it.
fn loss(model: &dyn LanguageModel, prompt: &[u32], checkpointing: Checkpointing) -> Tensor {
    let count = prompt.len() - 1;
    let of = |data: &[u32], shape: &[usize]| {
        Tensor::from_slice(data, alluvium_core::Shape::new(shape).unwrap(), &Device::cpu()).unwrap()
    };
    let positions: Vec<u32> = (0..count as u32).collect();
    let batch =
        Batch { ids: &of(&prompt[..count], &[1, count]), positions: &of(&positions, &[1, count]), cu_seqlens: None };
    let hidden = model.forward(&batch, checkpointing).unwrap();
    cross_entropy(CrossEntropyArgs {
        x: &hidden.reshape([count, hidden.shape().last()]).unwrap(),
        w: model.lm_head().dense().unwrap(),
        targets: &of(&prompt[1..], &[count]),
        ignore_index: None,
        reduction: Reduction::Mean,
        z_loss: 0.0,
        chunk: 16,
    })
    .unwrap()
}

#[test]
fn random_models_give_the_loss_and_gradients_of_mlx_lm() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/random_models");
    let mut faults = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let folder = entry.unwrap().path();
        let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        for checkpointing in [Checkpointing::None, Checkpointing::Layers] {
            let mut model = load(&folder, &Device::cpu()).unwrap().model;
            let tape = Tape::new();
            model.visit_mut("", &mut |_, tensor| *tensor = tape.watch(tensor));
            let loss = loss(model.as_ref(), &ids(&expected["ids"]), checkpointing);
            let gradients = loss.backward().unwrap();
            let (got, want) = (f64::from(loss.item().unwrap()), expected["loss"].as_f64().unwrap());
            if (got - want).abs() > 1e-5 * want {
                faults.push(format!("{name}: the loss is {got}, expected {want}"));
            }
            let mut seen = 0;
            model.visit("", &mut |parameter, tensor| {
                let gradient = gradients.get(tensor).unwrap().to_vec::<f32>().unwrap();
                let got = gradient.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let want = expected["gradient_norms"][&parameter].as_f64().unwrap();
                if (got - want).abs() > 1e-4 * want {
                    faults.push(format!("{name}, {parameter}: a gradient of norm {got}, expected {want}"));
                }
                seen += 1;
            });
            assert_eq!(seen, expected["gradient_norms"].as_object().unwrap().len(), "{name}");
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn olmo_hybrid_comes_back_from_the_layout_of_transformers() {
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/random_models/olmo_hybrid");
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("hf");
    convert_to_transformers(&from, &to, None, &Change::None, &mut |_, _| ()).unwrap();
    let filter = "model.layers.0.linear_attn.q_conv1d.weight";
    let stored = safetensors::read(to.join("model.safetensors")).unwrap().tensor(filter, &Device::cpu()).unwrap();
    assert_eq!(stored.shape().dims(), [16, 1, 4]);
    let mut parameters = Vec::new();
    for folder in [&from, &to] {
        let model = load(folder, &Device::cpu()).unwrap().model;
        let mut all = Vec::new();
        model.visit("", &mut |name, tensor| all.push((name, tensor.shape(), tensor.to_vec::<f32>().unwrap())));
        parameters.push(all);
    }
    assert_eq!(parameters[0], parameters[1]);
}
