//! Loss, every gradient and five steps of three optimizers of every model in `fixtures/train` are those of mlx-lm.
//!
//! Of parameters after the steps the norm, the sum and the first four numbers are compared. Another folder like `fixtures` in `ALLUVIUM_FIXTURES` is compared in place of it.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{DType, Device, Tape, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::{Batch, Checkpointing, LanguageModel, load};
use alluvium_ops::{AdamW, AdamWState, CrossEntropyArgs, Reduction, adamw, add, cross_entropy, scale};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

fn root() -> PathBuf {
    let ours = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    std::env::var_os("ALLUVIUM_FIXTURES").map_or(ours, PathBuf::from)
}

fn goldens() -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(root().join("train")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            all.push((name, serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()));
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["llama-f32", "qwen3-f32", "qwen3_5-f32", "qwen3_5_moe-f32", "qwen3_next-f32"]);
    all
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// That of mlx-lm's trainer: targets are the next tokens, the first and last that count are given per row.
fn loss(model: &dyn LanguageModel, golden: &Value, keep: Checkpointing) -> Tensor {
    let rows: Vec<Vec<u32>> = golden["batch"].as_array().unwrap().iter().map(ids).collect();
    let spans: Vec<Vec<u32>> = golden["lengths"].as_array().unwrap().iter().map(ids).collect();
    let tokens = rows[0].len() - 1;
    let (mut inputs, mut positions, mut targets) = (vec![], vec![], vec![]);
    for (row, span) in rows.iter().zip(&spans) {
        inputs.extend_from_slice(&row[..tokens]);
        positions.extend(0..tokens as u32);
        targets.extend((1..=tokens).map(|i| if (span[0]..=span[1]).contains(&(i as u32)) { row[i] } else { u32::MAX }));
    }
    let device = Device::cpu();
    let of = |data: &[u32]| Tensor::from_slice(data, [rows.len(), tokens], &device).unwrap();
    let batch = Batch { ids: &of(&inputs), positions: &of(&positions), cu_seqlens: None };
    let hidden = model.forward(&batch, keep).unwrap();
    cross_entropy(CrossEntropyArgs {
        x: &hidden.reshape([targets.len(), hidden.shape().last()]).unwrap(),
        w: model.lm_head().dense().unwrap(),
        targets: &Tensor::from_slice(&targets, [targets.len()], &device).unwrap(),
        ignore_index: Some(u32::MAX),
        reduction: Reduction::Mean,
        z_loss: 0.0,
        chunk: 33,
    })
    .unwrap()
}

/// The loss and all gradients by name; the model's tensors are plain again afterwards.
fn gradients(model: &mut dyn LanguageModel, golden: &Value, keep: Checkpointing) -> (f64, BTreeMap<String, Tensor>) {
    let tape = Tape::new();
    model.visit_mut("", &mut |_, tensor| *tensor = tape.watch(tensor));
    let loss = loss(model, golden, keep);
    let grads = loss.backward().unwrap();
    let mut found = BTreeMap::new();
    model.visit("", &mut |name, tensor| {
        found.insert(name, grads.get(tensor).unwrap().clone());
    });
    let value = f64::from(loss.item().unwrap());
    model.visit_mut("", &mut |_, tensor| *tensor = tensor.detach());
    (value, found)
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

fn numbers(x: &Tensor) -> Vec<f64> {
    x.to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// What is wrong with tensors by what a summary says of each: `bound` is relative to the norm.
fn differences(ours: &BTreeMap<String, Tensor>, summary: &Value, bound: f64) -> Vec<String> {
    let mut wrong = Vec::new();
    let summary = summary.as_object().unwrap();
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        summary.keys().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    );
    for (name, tensor) in ours {
        let (x, want) = (numbers(tensor), &summary[name]);
        let size = want["l2"].as_f64().unwrap();
        let sum = (x.iter().sum::<f64>() - want["sum"].as_f64().unwrap()).abs() / (x.len() as f64).sqrt();
        let first = want["first"].as_array().unwrap().iter().zip(&x).map(|(a, b)| (a.as_f64().unwrap() - b).abs());
        let worst = first.fold((norm(x.iter().copied()) - size).abs().max(sum), f64::max);
        if worst > bound * size {
            wrong.push(format!("{name}: {worst:.1e} of {size:.1e}"));
        }
    }
    wrong
}

#[test]
fn the_loss_and_every_gradient_are_those_of_mlx_lm() {
    for (name, golden) in goldens() {
        let folder = root().join(golden["model"].as_str().unwrap());
        for keep in [Checkpointing::None, Checkpointing::Layers] {
            let mut model = load(&folder, &Device::cpu()).unwrap().model;
            let (loss, ours) = gradients(model.as_mut(), &golden, keep);
            let want = golden["loss"].as_f64().unwrap();
            assert!((loss - want).abs() < 1e-5 * want, "{name}: the loss is {loss}, expected {want}");
            let wrong = differences(&ours, &golden["grad_summary"], 1e-3);
            assert!(wrong.is_empty(), "{name}: {wrong:?}");
            let file = safetensors::read(root().join(golden["grads"].as_str().unwrap())).unwrap();
            assert!(file.names().eq(ours.keys().map(String::as_str)));
            for (tensor, ours) in &ours {
                let theirs = numbers(&file.tensor(tensor, &Device::cpu()).unwrap());
                let far = norm(numbers(ours).iter().zip(&theirs).map(|(a, b)| a - b));
                let size = norm(theirs.iter().copied());
                assert!(far < 3e-4 * size, "{name}, {tensor}: {far:.1e} away, of {size:.1e}");
            }
        }
    }
}

/// Moments and the step that Adam has made.
type Moments = BTreeMap<String, [Tensor; 2]>;

fn step(
    model: &mut dyn LanguageModel,
    grads: &BTreeMap<String, Tensor>,
    optimizer: &str,
    moments: &mut Moments,
    step: u32,
) {
    model.visit_mut("", &mut |name, p| {
        let grad = &grads[&name];
        if optimizer.starts_with("sgd") {
            *p = add(p, &scale(grad, -0.05).unwrap()).unwrap();
            return;
        }
        let zeros = || Tensor::zeros(p.shape(), DType::F32, p.device()).unwrap();
        let [m, v] = moments.remove(&name).unwrap_or_else(|| [zeros(), zeros()]);
        let bias_correction = optimizer.contains("bias_correction=True");
        let weight_decay = if optimizer.starts_with("adamw") { 0.01 } else { 0.0 };
        let settings =
            AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay, step, bias_correction };
        let AdamWState { p: moved, m, v } = adamw(p.clone(), grad, m, v, &settings).unwrap();
        *p = moved;
        moments.insert(name, [m, v]);
    });
}

#[test]
fn five_steps_of_each_optimizer_are_those_of_mlx() {
    for (name, golden) in goldens() {
        let folder = root().join(golden["model"].as_str().unwrap());
        for run in golden["runs"].as_array().unwrap() {
            let optimizer = run["optimizer"].as_str().unwrap();
            let mut model = load(&folder, &Device::cpu()).unwrap().model;
            let mut moments = Moments::new();
            let mut losses = Vec::new();
            for i in 1..=6 {
                let (loss, grads) = gradients(model.as_mut(), &golden, Checkpointing::None);
                losses.push(loss);
                if i < 6 {
                    step(model.as_mut(), &grads, optimizer, &mut moments, i);
                }
            }
            let want: Vec<f64> = run["losses_before_each_step_and_after"]
                .as_array()
                .unwrap()
                .iter()
                .map(|x| x.as_f64().unwrap())
                .collect();
            for (ours, want) in losses.iter().zip(&want) {
                assert!((ours - want).abs() < 1e-3 * want, "{name}, {optimizer}: losses {losses:?}, expected {want:?}");
            }
            let mut ours = BTreeMap::new();
            model.visit("", &mut |name, tensor| {
                ours.insert(name, tensor.clone());
            });
            let wrong = differences(&ours, &run["params_after_5"], 1e-3);
            assert!(wrong.is_empty(), "{name}, {optimizer}: {wrong:?}");
        }
    }
}
