//! Whole runs through the public API: text, synthetic tasks, a model of the caller.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{Device, Error, Tensor};
use alluvium_lm::{initialize, params};
use alluvium_ops::{Over, linear, mean, mul, sub};
use alluvium_train::data::{Corpus, Task, TokenData};
use alluvium_train::{
    DataSource, Event, NextToken, Optimizer, OptimizerConfig, Overrides, Preset, Run, RunPaths, RunStatus, Settings,
    StepOptions, Trainer, TrainerParts, Validation, task_data, train_step,
};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

/// The smallest model that has every part.
fn small() -> Settings {
    let mut settings = Settings::of(Preset::Tiny);
    (settings.iters, settings.warmup, settings.save_every, settings.steps_per_report) = (8, 2, 3, 1);
    (settings.batch_size, settings.max_seq_length, settings.steps_per_eval) = (2, 32, 4);
    let shape = &mut settings.architecture;
    (shape.vocab_size, shape.hidden_size, shape.intermediate_size) = (300, 16, 32);
    (shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim) = (2, 1, 8);
    (shape.linear_num_key_heads, shape.linear_num_value_heads) = (1, 2);
    (shape.linear_key_head_dim, shape.linear_value_head_dim) = (8, 8);
    settings
}

fn of_task(task: Task) -> Settings {
    Settings { iters: 60, warmup: 4, batch_size: 8, val_batches: 3, steps_per_eval: 30, ..Settings::of_task(task) }
}

fn task_trainer(task: Task) -> Trainer {
    let settings = of_task(task);
    let device = Device::cpu();
    let config = settings.architecture.config(64, 0).unwrap();
    let model = initialize(&config, 0, &device).unwrap();
    let (data, validation) = task_data(task, &settings).unwrap();
    let objective = Box::new(NextToken::new(&device));
    Trainer::new(TrainerParts {
        model,
        config,
        tokenizer: None,
        objective,
        data: Box::new(data),
        validation,
        settings: settings.loop_settings(),
        device,
    })
}

fn text(folder: &Path) -> RunPaths {
    let text = folder.join("text");
    fs::create_dir_all(&text).unwrap();
    for i in 0..6 {
        let lines: String = (0..60).map(|j| format!("{i} and {j} are {}\n", i + j)).collect();
        fs::write(text.join(format!("{i}.txt")), lines).unwrap();
    }
    RunPaths { source: Some(DataSource::Text(vec![text])), tokenizer: None, out: folder.join("run") }
}

#[test]
fn a_short_run_on_a_task_lowers_the_loss_and_raises_the_accuracy() {
    let mut trainer = task_trainer(Task::Overwrite);
    let before = trainer.evaluate(&mut |_| CONTINUE).unwrap().unwrap();
    assert!(before.accuracy.unwrap() < 0.1, "{before:?}");
    assert_eq!(trainer.run(&mut |_| CONTINUE).unwrap(), RunStatus::Finished);
    let after = trainer.metrics().iter().rfind(|row| row.val_loss.is_some()).unwrap();
    assert_eq!(after.step, 60);
    assert!(after.val_loss.unwrap() < before.val_loss.unwrap() - 0.2, "{before:?} {after:?}");
}

#[test]
fn a_run_on_a_task_is_resumed_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let paths =
        |out| RunPaths { source: Some(DataSource::Task(Task::Recall)), tokenizer: None, out: folder.path().join(out) };
    let settings = Settings { iters: 7, ..of_task(Task::Recall) };
    let begin = |out| Run::begin(&paths(out), settings.clone(), &Device::cpu(), &mut |_| CONTINUE).unwrap().trainer;
    begin("whole").run(&mut |_| CONTINUE).unwrap();
    let stop_at_four = &mut |event: Event<'_>| match event {
        Event::Stepped { step: 4, .. } => ControlFlow::Break(()),
        _ => CONTINUE,
    };
    assert_eq!(begin("stopped").run(stop_at_four).unwrap(), RunStatus::Stopped);
    let remembered = RunPaths { source: None, ..paths("stopped") };
    let mut run = Run::resume(&remembered, |s| Ok(s.clone()), &Device::cpu(), &mut |_| CONTINUE).unwrap();
    assert_eq!((run.trainer.step(), run.text.is_none()), (4, true));
    assert_eq!(run.trainer.run(&mut |_| CONTINUE).unwrap(), RunStatus::Finished);
    let model = |out: &str| fs::read(folder.path().join(out).join("model.safetensors")).unwrap();
    assert!(model("whole") == model("stopped"));
    let other =
        Run::begin(&paths("whole"), settings.clone(), &Device::cpu(), &mut |_| CONTINUE).unwrap_err().to_string();
    assert!(other.contains("already holds trainer.safetensors"), "{other}");
}

#[test]
fn a_run_that_is_stopped_during_validation_validates_when_it_is_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let whole = RunPaths { out: folder.path().join("whole"), ..text(folder.path()) };
    let device = Device::cpu();
    let settings = Settings { val_batches: 0, val_split: 0.3, ..small() };
    Run::begin(&whole, settings.clone(), &device, &mut |_| CONTINUE).unwrap().trainer.run(&mut |_| CONTINUE).unwrap();
    let paths = text(folder.path());
    let mut run = Run::begin(&paths, settings, &device, &mut |_| CONTINUE).unwrap();
    let mut evaluated = 0;
    let status = run.trainer.run(&mut |event| match event {
        Event::Evaluated { of, .. } => {
            assert!(of > 1);
            evaluated += 1;
            ControlFlow::Break(())
        }
        _ => CONTINUE,
    });
    assert_eq!((status.unwrap(), evaluated, run.trainer.step()), (RunStatus::Stopped, 1, 4));
    drop(run);
    let paths = RunPaths { source: None, ..paths };
    let mut run = Run::resume(&paths, |s| Ok(s.clone()), &device, &mut |_| CONTINUE).unwrap();
    run.trainer.run(&mut |_| CONTINUE).unwrap();
    let rows = |out: &str| -> Vec<serde_json::Value> {
        let text = fs::read_to_string(folder.path().join(out).join("metrics.jsonl")).unwrap();
        let mut rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for row in &mut rows {
            row.as_object_mut().unwrap().retain(|key, _| !["tokens_per_second", "peak_memory"].contains(&key.as_str()));
        }
        rows
    };
    assert_eq!(rows("whole"), rows("run"));
}

#[test]
fn a_folder_with_another_models_files_is_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let paths = text(folder.path());
    fs::create_dir(&paths.out).unwrap();
    for name in ["model-00001-of-00002.safetensors", "config.json", "tokenizer.json", "metrics.jsonl"] {
        fs::write(paths.out.join(name), "mine").unwrap();
    }
    let error = Run::begin(&paths, small(), &Device::cpu(), &mut |_| CONTINUE).unwrap_err().to_string();
    assert!(error.contains("it already holds config.json"), "{error}");
    let left: Vec<_> = fs::read_dir(&paths.out).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left.len(), 4);
    assert!(left.iter().all(|path| fs::read_to_string(path).unwrap() == "mine"));
}

#[test]
fn the_end_of_text_is_learnt_at_the_end_of_documents_alone() {
    let folder = tempfile::tempdir().unwrap();
    // one document of many lines: nothing says that the text may end after a line
    fs::write(folder.path().join("lines.txt"), "0123456789\n".repeat(3_000)).unwrap();
    let paths = RunPaths {
        source: Some(DataSource::Text(vec![folder.path().join("lines.txt")])),
        tokenizer: None,
        out: folder.path().join("run"),
    };
    let run = Run::begin(&paths, small(), &Device::cpu(), &mut |_| CONTINUE).unwrap();
    let text = run.text.unwrap();
    assert!(text.train_tokens > 0 && text.validation_tokens > 0);
    let ends = |tokens: &[u32], end: u32| tokens.iter().filter(|&&token| token == end).count();
    let tokenizer = run.trainer.tokenizer().unwrap();
    let end = tokenizer.eos_token_ids()[0];
    assert_eq!(ends(&tokenizer.encode(&"0123456789\n".repeat(3_000)).unwrap(), end), 0);
}

#[test]
fn a_language_model_is_trained_on_token_ids() {
    let mut settings = small();
    settings.architecture.vocab_size = 20;
    let device = Device::cpu();
    let config = settings.architecture.config(32, 0).unwrap();
    let model = initialize(&config, 0, &device).unwrap();
    let documents = (0..40u32).map(|d| (0..30).map(|t| (d + t) % 20).collect()).collect();
    let data = TokenData::new(Corpus::new(documents).unwrap(), 32, 2, 0).unwrap();
    let settings = Settings { iters: 30, learning_rate: 1e-2, ..settings };
    let objective = Box::new(NextToken::new(&device));
    let validation = Validation::default();
    let data = Box::new(data);
    let mut trainer = Trainer::new(TrainerParts {
        model,
        config,
        tokenizer: None,
        objective,
        data,
        validation,
        settings: settings.loop_settings(),
        device,
    });
    trainer.run(&mut |_| CONTINUE).unwrap();
    let losses: Vec<f64> = trainer.metrics().iter().filter_map(|row| row.loss).collect();
    assert!(losses[29] < 0.7 * losses[0], "{losses:?}");
}

/// A model that is no language model.
struct Line {
    weight: Tensor,
    bias: Tensor,
}
params!(Line { weight, bias });

#[test]
fn a_closure_is_an_objective_of_any_model_and_any_batch() {
    let device = Device::cpu();
    let tensor = |values: &[f32], shape| Tensor::from_slice(values, shape, &device).unwrap();
    let mut line = Line { weight: tensor(&[0.0, 0.0], [1, 2]), bias: tensor(&[0.0], [1, 1]) };
    let x: Vec<f32> = (0..64).map(|i| (i * 37 % 23) as f32 / 23.0 - 0.5).collect();
    let y: Vec<f32> = x.chunks(2).map(|x| 3.0 * x[0] - x[1]).collect();
    let batches = [(tensor(&x, [32, 2]), tensor(&y, [32, 1]))];
    let objective = |line: &Line, (x, y): &(Tensor, Tensor)| {
        let ones = Tensor::full([32, 1], 1.0, &Device::cpu())?;
        let bias = linear(&ones, &line.bias)?;
        let error = sub(&linear(x, &line.weight)?, &sub(y, &bias)?)?;
        mean(&mul(&error, &error)?, Over::All)
    };
    let mut optimizer = Optimizer::new(OptimizerConfig { weight_decay: 0.0, ..OptimizerConfig::default() });
    let mut losses = Vec::new();
    for step in 1..=300 {
        let options = StepOptions { step, learning_rate: 0.05, grad_clip: 0.0 };
        losses.push(train_step(&mut line, &objective, &mut optimizer, &batches, &options).unwrap().read().unwrap().0);
    }
    assert!(losses[299] < 1e-4 * losses[0], "{} {}", losses[0], losses[299]);
    let weight = line.weight.to_vec::<f32>().unwrap();
    assert!((weight[0] - 3.0).abs() < 0.05 && (weight[1] + 1.0).abs() < 0.05, "{weight:?}");
    let fails = |_: &Line, _: &(Tensor, Tensor)| Err(Error::value("objective", "no"));
    let options = StepOptions { step: 1, learning_rate: 0.05, grad_clip: 0.0 };
    assert!(train_step(&mut line, &fails, &mut optimizer, &batches, &options).is_err());
    let unused = |line: &Line, _: &(Tensor, Tensor)| mean(&line.bias, Over::All);
    let error = train_step(&mut line, &unused, &mut optimizer, &batches, &options).unwrap_err().to_string();
    assert_eq!(error, "train: the loss does not depend on `weight`");
}

#[test]
fn settings_are_read_by_their_old_and_new_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    fs::write(&path, "preset = \"small\"\nval_split = 0.2\n").unwrap();
    assert_eq!(Overrides::read(&path).unwrap().settings().unwrap().val_split, 0.2);
    fs::write(&path, "size = \"small\"\nheld_out = 0.2\n").unwrap();
    let settings = Overrides::read(&path).unwrap().settings().unwrap();
    assert_eq!((settings.preset, settings.val_split), (Preset::Small, 0.2));
}
