//! Training on a GPU: the same losses as on the CPU, and what is left when the GPU fails during a run.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::gpu::{Builder, Gpu};
use alluvium_core::{Device, Tensor};
use alluvium_lm::LanguageModel;
use alluvium_ops::argmax;
use alluvium_train::finetune::{Finetune, FinetuneSettings, Start};
use alluvium_train::{DataSource, Event, Preset, Run, RunPaths, RunStatus, Settings, Trainer};
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

/// A GPU; `None`, with a message, where there is not even a software one.
fn open(builder: Builder) -> Option<Gpu> {
    builder.open_for_test().unwrap()
}

/// The smallest model that has every part.
fn settings(iters: u64) -> Settings {
    let mut settings = Settings::of(Preset::Tiny);
    (settings.iters, settings.warmup, settings.save_every, settings.steps_per_report) = (iters, 5, 3, 1);
    (settings.batch_size, settings.max_seq_length) = (2, 96);
    let shape = &mut settings.architecture;
    (shape.vocab_size, shape.hidden_size, shape.intermediate_size) = (300, 32, 64);
    (shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim) = (2, 1, 16);
    (shape.linear_num_key_heads, shape.linear_num_value_heads) = (1, 2);
    (shape.linear_key_head_dim, shape.linear_value_head_dim) = (16, 16);
    settings
}

/// Additions with their results: text from which a small model learns something.
fn paths(folder: &Path, out: &str) -> RunPaths {
    let text = folder.join("sums.txt");
    if !text.exists() {
        let sums = (0..3_000).fold(String::new(), |mut sums, i| {
            let (a, b) = (i * 7 % 83, i * 13 % 89);
            let _ = writeln!(sums, "{a} and {b} are {}", a + b);
            sums
        });
        std::fs::write(&text, sums).unwrap();
    }
    RunPaths { source: Some(DataSource::Text(vec![text])), tokenizer: None, out: folder.join(out) }
}

fn begin(folder: &Path, out: &str, settings: &Settings, device: &Device) -> Trainer {
    Run::begin(&paths(folder, out), settings.clone(), device, &mut |_| ControlFlow::Continue(())).unwrap().trainer
}

fn resume(paths: &RunPaths) -> Trainer {
    Run::resume(paths, |old| Ok(old.clone()), &Device::cpu(), &mut |_| ControlFlow::Continue(())).unwrap().trainer
}

fn losses(trainer: &Trainer) -> Vec<f64> {
    trainer.metrics().iter().filter_map(|record| record.loss).collect()
}

/// Greedy tokens after a prompt, and the smallest margin between the two most likely tokens.
fn greedy(model: &dyn LanguageModel, device: &Device, prompt: &[u32]) -> (Vec<u32>, f32) {
    let mut cache = model.cache(1).unwrap();
    let (mut input, mut made, mut closest) = (prompt.to_vec(), Vec::new(), f32::INFINITY);
    while made.len() < 32 {
        let ids = Tensor::from_slice(&input, [1, input.len()], device).unwrap();
        let hidden = model.forward_cached(&ids, &mut cache).unwrap();
        let [tokens, width] = [hidden.shape()[1], hidden.shape()[2]];
        let last = hidden.reshape([tokens, width]).unwrap().rows(tokens - 1, 1).unwrap();
        let logits = model.lm_head().linear(&last).unwrap();
        input = argmax(&logits).unwrap().to_vec::<u32>().unwrap();
        made.extend(&input);
        let mut logits = logits.to_vec::<f32>().unwrap();
        logits.sort_by(f32::total_cmp);
        closest = closest.min(logits[logits.len() - 1] - logits[logits.len() - 2]);
    }
    (made, closest)
}

#[test]
fn fifty_steps_have_the_losses_of_the_cpu() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let run = |device: &Device, out: &str| {
        let mut trainer = begin(folder.path(), out, &settings(50), device);
        assert_eq!(trainer.run(&mut |_| ControlFlow::Continue(())).unwrap(), RunStatus::Finished);
        trainer
    };
    let (of_gpu, of_cpu) = (losses(&run(&gpu.into(), "gpu")), losses(&run(&Device::cpu(), "cpu")));
    assert_eq!((of_gpu.len(), of_cpu.len()), (50, 50));
    for (step, (of_gpu, of_cpu)) in of_gpu.iter().zip(&of_cpu).enumerate() {
        assert!((of_gpu - of_cpu).abs() < 1e-3, "step {}: {of_gpu} on the GPU, {of_cpu}", step + 1);
    }
    assert!(of_cpu[49] < 0.7 * of_cpu[0], "nothing was learnt: {of_cpu:?}");
}

#[test]
fn a_model_generates_the_same_tokens_on_gpu_and_cpu() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/qwen3_5-f32");
    let said = |device: &Device| {
        let model = alluvium_lm::load(&folder, device).unwrap().model;
        greedy(model.as_ref(), device, &(1..80).collect::<Vec<u32>>())
    };
    let (tokens, closest) = said(&Device::cpu());
    assert!(closest > 0.05, "two tokens are nearly as likely ({closest}): roundings may decide");
    assert_eq!(said(&gpu.into()).0, tokens);
}

#[test]
fn a_lost_gpu_is_an_error_and_the_cpu_resumes_from_the_checkpoint() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = begin(folder.path(), "run", &settings(8), &gpu.clone().into());
    let outcome = trainer.run(&mut |event| {
        if let Event::Stepped { step: 5, .. } = event {
            gpu.destroy_for_test();
        }
        ControlFlow::Continue(())
    });
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("the device was lost"), "{error}");
    drop(trainer);

    let paths = RunPaths { source: None, ..paths(folder.path(), "run") };
    let mut trainer = resume(&paths);
    assert_eq!(trainer.step(), 3, "the checkpoint before");
    assert_eq!(trainer.run(&mut |_| ControlFlow::Continue(())).unwrap(), RunStatus::Finished);
    let mut whole = begin(folder.path(), "whole", &settings(8), &Device::cpu());
    whole.run(&mut |_| ControlFlow::Continue(())).unwrap();
    for (resumed, whole) in losses(&trainer).iter().zip(losses(&whole)) {
        assert!((resumed - whole).abs() < 1e-3, "{resumed} after the loss of the GPU, {whole} without it");
    }
}

#[test]
fn a_gpu_whose_memory_is_full_is_an_error_with_the_sizes_and_leaves_nothing_half_written() {
    let Some(gpu) = open(Gpu::builder().memory_limit(1 << 20)) else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(8);
    settings.max_seq_length = 2_048;
    let mut trainer = begin(folder.path(), "run", &settings, &gpu.into());
    let error = trainer.run(&mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("1.0 MiB") || error.contains("1048576"), "{error}");
    let left = std::fs::read_dir(folder.path().join("run")).unwrap();
    let left: Vec<String> = left.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(left, ["metrics.jsonl"]);
    assert!(!left.iter().any(|name| name.contains("safetensors") || name.contains("tmp")), "{left:?}");
}

#[test]
fn adapters_are_trained_with_the_same_losses_as_on_the_cpu() {
    let Some(gpu) = open(Gpu::builder()) else { return };
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    for (model, kind) in [("qwen3_next-q4g64", "lora"), ("qwen3_5-f32", "dora")] {
        let folder = tempfile::tempdir().unwrap();
        let losses_on = |device: Device, out: &str| {
            let keys = serde_json::json!({
                "model": fixtures.join("models").join(model), "data": fixtures.join("train/lora-data"), "train": true,
                "adapter_path": folder.path().join(out), "fine_tune_type": kind, "iters": 8, "batch_size": 2,
                "num_layers": 2, "learning_rate": 1e-3, "steps_per_report": 1,
                "lora_parameters": {"rank": 4, "scale": 10.0},
            });
            let settings = FinetuneSettings::from_keys(serde_json::from_value(keys).unwrap()).unwrap();
            let observe = &mut |_: Event<'_>| ControlFlow::Continue(());
            let mut run = Finetune::prepare(settings, Start::Begin, &device, observe).unwrap();
            run.trainer.run(observe).unwrap();
            losses(&run.trainer)
        };
        let (ours, theirs) = (losses_on(Device::cpu(), "cpu"), losses_on(gpu.clone().into(), "gpu"));
        assert_eq!(ours.len(), 8);
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() < 1e-3, "{model}: {ours:?} on the CPU, {theirs:?} on the GPU");
        }
    }
}
