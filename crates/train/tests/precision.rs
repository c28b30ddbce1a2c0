//! Training in bf16: the losses of f32, f32 masters in checkpoints, runs that resume bit for bit, half the activations.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::cpu::Cpu;
use alluvium_core::gpu::Gpu;
use alluvium_core::{DType, Device, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::{LanguageModel, initialize, is_kept_in_f32, params};
use alluvium_ops::{Over, linear, mean, mul, sub};
use alluvium_train::data::PackedBatch;
use alluvium_train::finetune::{Finetune, FinetuneSettings, Start};
use alluvium_train::{
    DataSource, Event, Masters, NextToken, Optimizer, OptimizerConfig, OptimizerKind, Preset, Run, RunPaths, RunStatus,
    Settings, StepOptions, TrainDtype, Trainer, gradients, train_step,
};
use serde_json::{Value, json};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

/// The smallest model that has every part, on batches that are long enough for the rule's chunks.
fn small(dtype: TrainDtype) -> Settings {
    let mut settings = Settings::of(Preset::Tiny);
    (settings.iters, settings.warmup, settings.save_every, settings.steps_per_report) = (6, 2, 3, 1);
    (settings.batch_size, settings.max_seq_length, settings.dtype) = (2, 96, dtype);
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
        let sum = |i: u32| format!("{} and {} are {}\n", i * 7 % 83, i * 13 % 89, i * 7 % 83 + i * 13 % 89);
        fs::write(&text, (0..3_000).map(sum).collect::<String>()).unwrap();
    }
    RunPaths { source: Some(DataSource::Text(vec![text])), tokenizer: None, out: folder.join(out) }
}

fn begin_on(folder: &Path, out: &str, settings: &Settings, device: &Device) -> Trainer {
    Run::begin(&paths(folder, out), settings.clone(), device, &mut |_| CONTINUE).unwrap().trainer
}

fn begin(folder: &Path, out: &str, settings: &Settings) -> Trainer {
    begin_on(folder, out, settings, &Device::cpu())
}

/// A GPU; `None`, with a message, where there is not even a software one.
fn open_gpu() -> Option<Device> {
    Gpu::builder().open_for_test().unwrap().map(Device::from)
}

fn finish(mut trainer: Trainer) -> Trainer {
    assert_eq!(trainer.run(&mut |_| CONTINUE).unwrap(), RunStatus::Finished);
    trainer
}

fn stop_at_four(event: Event<'_>) -> ControlFlow<()> {
    match event {
        Event::Stepped { step: 4, .. } => ControlFlow::Break(()),
        _ => CONTINUE,
    }
}

fn losses(trainer: &Trainer) -> Vec<f64> {
    trainer.metrics().iter().filter_map(|row| row.loss).collect()
}

#[test]
fn the_losses_of_a_run_in_bf16_are_those_of_f32() {
    let folder = tempfile::tempdir().unwrap();
    let run = |dtype: TrainDtype| {
        let settings = Settings { iters: 80, warmup: 8, learning_rate: 1.5e-3, ..small(dtype) };
        losses(&finish(begin(folder.path(), &dtype.to_string(), &settings)))
    };
    let (wide, half) = (run(TrainDtype::F32), run(TrainDtype::Bf16));
    assert_ne!(wide, half);
    // single batches scatter; the curve is the mean over ten steps
    for (at, (wide, half)) in wide.chunks(10).zip(half.chunks(10)).enumerate() {
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let (wide, half) = (mean(wide), mean(half));
        eprintln!("{at}: {wide} {half} {:.4}", half / wide - 1.0);
        assert!((wide - half).abs() < 0.015 * wide, "steps from {}: {half} in bf16, {wide} in f32", 10 * at);
    }
    assert!(half[79] < 0.7 * half[0], "nothing was learnt: {half:?}");
}

#[test]
fn a_run_in_bf16_resumes_bit_for_bit_from_f32_masters_and_moments() {
    for optimizer in [OptimizerKind::AdamW, OptimizerKind::Muon, OptimizerKind::Sgd] {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { optimizer, ..small(TrainDtype::Bf16) };
        finish(begin(folder.path(), "whole", &settings));
        let mut stopped = begin(folder.path(), "stopped", &settings);
        assert_eq!(stopped.run(&mut stop_at_four).unwrap(), RunStatus::Stopped);
        drop(stopped);
        let remembered = RunPaths { source: None, ..paths(folder.path(), "stopped") };
        let resume = |dtype: TrainDtype| {
            let change = |old: &Settings| Ok(Settings { dtype, ..old.clone() });
            Run::resume(&remembered, change, &Device::cpu(), &mut |_| CONTINUE)
        };
        let error = resume(TrainDtype::F32).unwrap_err().to_string();
        assert!(error.contains("dtype was bf16, now f32"), "{error}");
        finish(resume(TrainDtype::Bf16).unwrap().trainer);

        let file = |out: &str, name: &str| safetensors::read(folder.path().join(out).join(name)).unwrap();
        let [whole, resumed] = ["whole", "stopped"].map(|out| file(out, "trainer.safetensors"));
        let model = file("whole", "model.safetensors");
        let read = |file: &safetensors::File, name: &str| file.tensor(name, &Device::cpu()).unwrap();
        let mut rounded = 0;
        assert_eq!(whole.names().collect::<Vec<_>>(), resumed.names().collect::<Vec<_>>());
        for name in whole.names() {
            let tensor = read(&whole, name);
            assert_eq!(tensor.dtype(), DType::F32, "{name}");
            assert_eq!(tensor.to_bytes().unwrap(), read(&resumed, name).to_bytes().unwrap(), "{optimizer}: {name}");
            // the model has the roundings of the masters
            let Some(parameter) = name.strip_prefix("parameter.") else { continue };
            let dtype = if is_kept_in_f32(parameter) { DType::F32 } else { DType::BF16 };
            let working = read(&model, parameter);
            assert_eq!(working.dtype(), dtype, "{parameter}");
            let rounding = alluvium_ops::cast(&tensor, dtype).unwrap();
            assert_eq!(working.to_bytes().unwrap(), rounding.to_bytes().unwrap(), "{parameter}");
            rounded += usize::from(rounding.to_floats().unwrap() != tensor.to_floats().unwrap());
        }
        assert!(rounded > 10, "masters of {rounded} tensors have more digits than their working copies");
    }
}

fn model(settings: &Settings, device: &Device) -> Box<dyn LanguageModel> {
    initialize(&settings.architecture.config(64, 0).unwrap(), 0, device).unwrap()
}

#[test]
fn activations_in_bf16_take_about_half_the_memory() {
    let settings = Settings::of(Preset::Tiny);
    let activations = |dtype: DType| {
        let device: Device = Cpu::builder().open().unwrap().into();
        let mut model = model(&settings, &device);
        let _masters = Masters::take(model.as_mut(), dtype).unwrap();
        let peak = |model: &mut Box<dyn LanguageModel>, tokens: u32| {
            let mut batch = PackedBatch::default();
            let ids = |first: u32| (first..first + tokens).map(|i| i * 7 % 1_000).collect::<Vec<u32>>();
            batch.push(&ids(0), &ids(1));
            device.reset_peak();
            let before = device.memory_in_use();
            drop(gradients(model.as_mut(), &NextToken::new(&device), &[batch]).unwrap());
            device.peak_memory() - before
        };
        // what a batch takes whatever its length, such as gradients, is left out
        peak(&mut model, 1_024) - peak(&mut model, 256)
    };
    let (wide, half) = (activations(DType::F32), activations(DType::BF16));
    let share = half as f64 / wide as f64;
    eprintln!("768 tokens add {wide} bytes in f32, {half} in bf16: {share:.3}");
    assert!(share < 0.62, "{half} of {wide}");
}

#[test]
fn steps_too_small_for_bf16_add_up_in_the_masters() {
    struct Line {
        weight: Tensor,
    }
    params!(Line { weight });
    let device = Device::cpu();
    let tensor = |values: &[f32], shape: [usize; 2]| Tensor::from_slice(values, shape, &device).unwrap();
    for kind in [OptimizerKind::AdamW, OptimizerKind::Adam, OptimizerKind::Sgd, OptimizerKind::Muon] {
        let mut line = Line { weight: tensor(&[1.0, -1.0], [1, 2]) };
        let masters = Masters::take(&mut line, DType::BF16).unwrap();
        let config = OptimizerConfig { kind, weight_decay: 0.0, ..OptimizerConfig::default() };
        let mut optimizer = Optimizer::new(config).with_masters(masters);
        let x = alluvium_ops::cast(&tensor(&[1.0, 0.0, 0.0, 1.0], [2, 2]), DType::BF16).unwrap();
        let y = alluvium_ops::cast(&tensor(&[3.0, 1.0], [2, 1]), DType::BF16).unwrap();
        let objective = |line: &Line, (x, y): &(Tensor, Tensor)| {
            let error = sub(&linear(x, &line.weight)?, y)?;
            alluvium_ops::cast(&mean(&mul(&error, &error)?, Over::All)?, DType::F32)
        };
        // each step moves the weights by a thousandth: a quarter of what bf16 can tell apart beside 1
        for step in 1..=64 {
            let options = StepOptions { step, learning_rate: 1e-3, grad_clip: 0.0 };
            let batches = [(x.clone(), y.clone())];
            train_step(&mut line, &objective, &mut optimizer, &batches, &options).unwrap();
        }
        let master = optimizer.masters().get("weight").unwrap().to_vec::<f32>().unwrap();
        let working = line.weight.to_floats().unwrap();
        assert_eq!(line.weight.dtype(), DType::BF16);
        assert!(master[0] > 1.006 && master[1] > -0.994, "{kind}: {master:?}");
        for (master, working) in master.iter().zip(working) {
            assert!((master - working).abs() <= master.abs() / 256.0, "{kind}: {working} for {master}");
        }
    }
}

#[test]
fn f16_is_refused_with_the_reason() {
    let mut model = model(&small(TrainDtype::F32), &Device::cpu());
    let error = Masters::take(model.as_mut(), DType::F16).unwrap_err().to_string();
    let want = "masters: a model cannot be trained in f16: small gradients become 0 without loss scaling; use bf16";
    assert_eq!(error, want);
    let error = Masters::take(model.as_mut(), DType::U8).unwrap_err().to_string();
    assert_eq!(error, "masters: a model cannot be trained in u8; use bf16");
    assert_eq!(model.dtype(), DType::F32);
    let keys = json!({"model": "m", "data": "d", "dtype": "f16"});
    let error = FinetuneSettings::from_keys(serde_json::from_value(keys).unwrap()).unwrap_err().to_string();
    assert!(error.contains("f16 cannot be trained in: small gradients become 0"), "{error}");
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

fn finetune(folder: &Path, more: &Value, start: Start, device: &Device) -> Finetune {
    let mut keys = json!({
        "data": fixture("train/lora-data"), "adapter_path": folder.join("adapters"), "train": true, "iters": 6,
        "batch_size": 2, "num_layers": 2, "learning_rate": 1e-3, "save_every": 2, "steps_per_report": 1,
        "lora_parameters": {"rank": 4, "scale": 10.0},
    });
    keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let settings = FinetuneSettings::from_keys(serde_json::from_value(keys).unwrap()).unwrap();
    Finetune::prepare(settings, start, device, &mut |_| CONTINUE).unwrap()
}

#[test]
fn fine_tuning_in_bf16_has_the_losses_of_f32_and_resumes_bit_for_bit() {
    for (model, kind) in
        [("qwen3_5-bf16-q4g64", "lora"), ("qwen3_5-f32", "dora"), ("qwen3_5-bf16", "full"), ("qwen3_5_moe-f32", "lora")]
    {
        let keys =
            |dtype: &str| json!({"model": fixture("models").join(model), "fine_tune_type": kind, "dtype": dtype});
        let whole = |dtype: &str| {
            let folder = tempfile::tempdir().unwrap();
            let mut run = finetune(folder.path(), &keys(dtype), Start::Begin, &Device::cpu());
            assert_eq!(run.trainer.model().dtype(), if dtype == "bf16" { DType::BF16 } else { DType::F32 });
            run.trainer.run(&mut |_| CONTINUE).unwrap();
            let adapter = fs::read(folder.path().join("adapters/adapters.safetensors")).unwrap();
            (losses(&run.trainer), adapter)
        };
        let ((wide, _), (half, adapter)) = (whole("f32"), whole("bf16"));
        assert_eq!(wide.len(), 6);
        for (wide, half) in wide.iter().zip(&half) {
            // one batch of two samples, whose loss has the error of single logits: 1.5 % of those
            assert!((wide - half).abs() < 0.01 * wide, "{model}, {kind}: {half} in bf16, {wide} in f32");
        }
        let folder = tempfile::tempdir().unwrap();
        let again = |start| finetune(folder.path(), &keys("bf16"), start, &Device::cpu());
        let mut stopped = again(Start::Begin);
        assert_eq!(stopped.trainer.run(&mut stop_at_four).unwrap(), RunStatus::Stopped);
        drop(stopped);
        again(Start::Resume).trainer.run(&mut |_| CONTINUE).unwrap();
        let resumed = fs::read(folder.path().join("adapters/adapters.safetensors")).unwrap();
        assert!(adapter == resumed, "{model}, {kind}: a resumed run gives another adapter");
        let file = safetensors::read(folder.path().join("adapters/trainer.safetensors")).unwrap();
        assert!(file.entries().all(|(_, entry)| entry.dtype.tensor_dtype() == Some(DType::F32)));
    }
}

#[test]
fn a_gpu_has_the_losses_of_the_cpu_and_resumes_bit_for_bit() {
    let Some(gpu) = open_gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { iters: 40, warmup: 4, ..small(TrainDtype::Bf16) };
    let run = |out: &str, device: &Device| losses(&finish(begin_on(folder.path(), out, &settings, device)));
    let (ours, theirs) = (run("cpu", &Device::cpu()), run("gpu", &gpu));
    for (step, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        // sums in another order round some activations to the next bf16
        assert!((ours - theirs).abs() < 0.01 * ours, "step {}: {theirs} on the GPU, {ours}", step + 1);
    }
    assert!(theirs[39] < 0.8 * theirs[0], "nothing was learnt: {theirs:?}");

    let settings = Settings { optimizer: OptimizerKind::Muon, ..small(TrainDtype::Bf16) };
    finish(begin_on(folder.path(), "whole", &settings, &gpu));
    let mut stopped = begin_on(folder.path(), "stopped", &settings, &gpu);
    assert_eq!(stopped.run(&mut stop_at_four).unwrap(), RunStatus::Stopped);
    drop(stopped);
    let remembered = RunPaths { source: None, ..paths(folder.path(), "stopped") };
    let resumed = Run::resume(&remembered, |old| Ok(old.clone()), &gpu, &mut |_| CONTINUE);
    finish(resumed.unwrap().trainer);
    let model = |out: &str| fs::read(folder.path().join(out).join("model.safetensors")).unwrap();
    assert!(model("whole") == model("stopped"), "a resumed run gives another model");
}

#[test]
fn a_gpu_fine_tunes_in_bf16_with_the_losses_of_the_cpu() {
    let Some(gpu) = open_gpu() else { return };
    for (model, kind) in [("qwen3_5-bf16-q4g64", "lora"), ("qwen3_5-f32", "dora"), ("qwen3_5-bf16", "full")] {
        let losses_on = |device: &Device| {
            let folder = tempfile::tempdir().unwrap();
            let keys = json!({"model": fixture("models").join(model), "fine_tune_type": kind, "dtype": "bf16"});
            let mut run = finetune(folder.path(), &keys, Start::Begin, device);
            run.trainer.run(&mut |_| CONTINUE).unwrap();
            losses(&run.trainer)
        };
        for (ours, theirs) in losses_on(&Device::cpu()).iter().zip(losses_on(&gpu)) {
            assert!((ours - theirs).abs() < 0.01 * ours, "{model}, {kind}: {theirs} on the GPU, {ours}");
        }
    }
}
