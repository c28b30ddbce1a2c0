//! Damaged settings, metrics and states: no reader panics, hangs or takes memory; see [`fuzzing`].

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../../lm/tests/fuzzing/mod.rs"]
mod fuzzing;

use alluvium_core::Device;
use alluvium_train::{DataSource, Event, Metrics, Overrides, Run, RunPaths};
use fuzzing::{Fuzz, Seed};
use std::ops::ControlFlow;
use std::path::Path;

/// As many as take a few seconds.
const FEW: usize = 2_000;
const MILLION: usize = 1_000_000;

const SETTINGS: &str = include_str!("corpus/run.toml");
const METRICS: &str = include_str!("corpus/metrics.jsonl");

#[test]
fn no_settings_file_makes_its_reader_panic_hang_or_take_memory() {
    settings(FEW);
}

#[test]
fn no_metrics_file_makes_its_reader_panic_hang_or_take_memory() {
    metrics(FEW);
}

#[test]
fn no_state_of_a_run_makes_its_reader_panic_hang_or_take_memory() {
    state(FEW);
}

#[test]
#[ignore = "takes minutes"]
fn a_million_settings_files() {
    settings(MILLION);
}

#[test]
#[ignore = "takes minutes"]
fn a_million_metrics_files() {
    metrics(MILLION);
}

#[test]
#[ignore = "takes many minutes"]
fn a_million_states() {
    state(MILLION);
}

/// A TOML file, and the settings and the configuration that come of it.
fn settings(inputs: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    let fuzz = Fuzz { name: "settings", seeds: &[Seed::text(SETTINGS)], inputs, constant: 64 << 10 };
    let taken = fuzz.run(|bytes| {
        std::fs::write(&path, bytes).unwrap();
        let settings = Overrides::read(&path).and_then(|changes| changes.settings());
        let Ok(settings) = settings else { return false };
        let _ = settings.architecture.config(settings.max_seq_length, 0);
        true
    });
    assert!(taken > inputs / 20, "{taken}");
}

fn metrics(inputs: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let fuzz = Fuzz { name: "metrics", seeds: &[Seed::text(METRICS)], inputs, constant: 64 << 10 };
    let taken = fuzz.run(|bytes| {
        std::fs::write(&path, bytes).unwrap();
        Metrics::open(&path, 20).is_ok_and(|metrics| !metrics.rows().is_empty())
    });
    assert!(taken > inputs / 20, "{taken}");
}

/// What a run goes on from: a header, where the run stands with its settings, tensors.
fn state(inputs: usize) {
    let folder = tempfile::tempdir().unwrap();
    let paths = saved(folder.path());
    let path = paths.out.join("trainer.safetensors");
    let whole = std::fs::read(&path).unwrap();
    // a run holds the text, its tokens, the tokenizer and the model besides
    let constant = (1 << 20) + 16 * whole.len();
    let fuzz = Fuzz { name: "state", seeds: &[Seed::safetensors(whole)], inputs, constant };
    fuzz.run(|bytes| {
        std::fs::write(&path, bytes).unwrap();
        let same = |before: &_| Overrides::default().applied(Clone::clone(before));
        Run::resume(&paths, same, &Device::cpu(), &mut |_| ControlFlow::Continue(())).is_ok()
    });
}

/// A state whose text was changed, and what resuming says of it.
fn refused(changes: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let paths = saved(folder.path());
    let path = paths.out.join("trainer.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let mut header = String::from_utf8(whole[8..8 + length].to_vec()).unwrap();
    for (from, to) in changes {
        assert!(header.contains(from), "{header}");
        header = header.replacen(from, to, 1);
    }
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &whole[8 + length..]].concat();
    std::fs::write(&path, bytes).unwrap();
    let same = |before: &_| Overrides::default().applied(Clone::clone(before));
    let device = Device::cpu();
    let error = Run::resume(&paths, same, &device, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(device.peak_memory() < 1 << 20, "{} bytes", device.peak_memory());
    error.to_string()
}

#[test]
fn a_state_at_a_position_that_the_text_does_not_have_is_an_error() {
    let error = refused(&[(r#"\"index\":"#, r#"\"index\":99"#)]);
    assert!(error.contains("of an epoch came, this text has"), "{error}");
}

#[test]
fn a_state_that_counts_beyond_what_can_be_is_refused() {
    let error = refused(&[(r#"\"step\":1"#, r#"\"step\":18446744073709551615"#)]);
    assert!(error.contains("counts more than a run can have done"), "{error}");
}

#[test]
fn a_state_whose_settings_ask_for_a_larger_model_costs_no_memory() {
    let error = refused(&[(r#"\"hidden_size\":8"#, r#"\"hidden_size\":80000"#)]);
    assert!(error.contains("the model has [") && error.contains("80000] of F32"), "{error}");
}

/// A run of the smallest model, stopped after a step.
fn saved(folder: &Path) -> RunPaths {
    let text = folder.join("text");
    std::fs::create_dir(&text).unwrap();
    for i in 0..6 {
        std::fs::write(text.join(format!("{i}.txt")), format!("{i}: some words, and then some more\n")).unwrap();
    }
    let paths = RunPaths { source: Some(DataSource::Text(vec![text])), tokenizer: None, out: folder.join("run") };
    let path = folder.join("run.toml");
    std::fs::write(&path, SETTINGS).unwrap();
    let settings = Overrides::read(&path).unwrap().settings().unwrap();
    let mut run = Run::begin(&paths, settings, &Device::cpu(), &mut |_| ControlFlow::Continue(())).unwrap();
    let stop = |event: Event<'_>| match event {
        Event::Ready(_) => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    run.trainer.run(&mut { stop }).unwrap();
    paths
}
