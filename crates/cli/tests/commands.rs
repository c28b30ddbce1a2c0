//! Every command, used as its help describes.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, names, said, text};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;

#[test]
fn training_writes_model_tokenizer_state_and_metrics() {
    let place = Place::new();
    let out = said(&mut place.alluvium(&[
        "train",
        "--data",
        "text/a.txt",
        "text/b.txt",
        "--out",
        "a/new/run",
        "-c",
        "tiny.toml",
        "--iters",
        "6",
        "--steps-per-report",
        "2",
        "--sample-tokens",
        "5",
        "--sample-prompt",
        "bada",
    ]));
    assert!(out.contains("token frequencies alone reach") && out.contains("a/new/run/loss.svg"), "{out}");
    assert!(out.contains("Sample after \"bada\":\n\nbada"), "{out}");
    assert_eq!(
        names(&place.path("a/new/run")),
        [
            "config.json",
            "config.toml",
            "generation_config.json",
            "loss.svg",
            "metrics.jsonl",
            "model.safetensors",
            "model.safetensors.index.json",
            "report.md",
            "tokenizer.json",
            "tokenizer_config.json",
            "trainer.safetensors",
        ]
    );
    let lines = fs::read_to_string(place.path("a/new/run/metrics.jsonl")).unwrap();
    let steps: Vec<u64> = lines
        .lines()
        .skip(1)
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [2, 4, 6, 6], "three reports and the validation loss");
    let config: Value = serde_json::from_slice(&fs::read(place.path("a/new/run/config.json")).unwrap()).unwrap();
    assert_eq!(config["model_type"], "qwen3_5");
    assert_eq!(config["text_config"]["rms_norm_eps"].to_string(), "1e-6");
    assert!(fs::read_to_string(place.path("a/new/run/loss.svg")).unwrap().contains("polyline"));
}

#[test]
fn a_run_takes_an_existing_tokenizer() {
    let place = Place::trained();
    said(&mut place.train("second", &["--iters", "1", "--tokenizer", "run"]));
    let tokenizer = |run: &str| fs::read(place.path(run).join("tokenizer.json")).unwrap();
    assert!(tokenizer("run") == tokenizer("second"));
}

/// Greedy, unless the arguments have a temperature.
fn generated(place: &Place, args: &[&str]) -> String {
    let greedy: &[&str] = if args.contains(&"--temp") { &[] } else { &["--temp", "0"] };
    said(place.alluvium(&["generate", "--model", "run", "--prompt", "bada", "--top-p", "1"]).args(greedy).args(args))
}

#[test]
fn generation_depends_on_the_seed_and_at_temperature_0_on_nothing() {
    let place = Place::trained();
    let drawn = |seed: &str| generated(&place, &["--temp", "1", "--seed", seed, "-m", "40"]);
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    let greedy = |seed: &str| generated(&place, &["--temp", "0", "--seed", seed, "-m", "40"]);
    assert_eq!(greedy("1"), greedy("2"));
    assert_eq!(greedy("1"), generated(&place, &["--temp", "1", "--top-k", "1", "-m", "40"]));
}

#[test]
fn generation_ends_at_its_limit_and_before_a_stop_text() {
    let place = Place::trained();
    assert_eq!(generated(&place, &["-m", "0"]), "\n");
    let all = generated(&place, &["-m", "30", "--temp", "1", "--seed", "0"]);
    let output =
        place.alluvium(&["generate", "--model", "run", "-p", "bada", "-m", "30", "--temp", "0"]).output().unwrap();
    let end = text(&output.stderr);
    assert!(end.contains("completion: 30 tokens") || all.len() < 30, "{end}");
    let stop: String = all.chars().skip(6).take(2).collect();
    let stopped = generated(&place, &["-m", "30", "--temp", "1", "--seed", "0", "--stop", "never", "--stop", &stop]);
    assert_eq!(stopped, format!("{}\n", &all[..all.find(&stop).unwrap()]));
}

#[test]
fn a_prompt_comes_from_standard_input_as_well() {
    let place = Place::trained();
    for args in [
        &["generate", "--model", "run", "-m", "9", "--temp", "0"][..],
        &["generate", "--model", "run", "-m", "9", "--temp", "0", "-p", "-"],
    ] {
        let mut child = place.alluvium(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"bada").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(text(&output.stdout), generated(&place, &["-m", "9"]));
    }
}

#[test]
fn info_names_every_tensor() {
    let place = Place::trained();
    let short = said(&mut place.alluvium(&["info", "run"]));
    assert!(short.contains("model       qwen3_5") && !short.contains("A_log"), "{short}");
    let long = said(&mut place.alluvium(&["info", "run", "--tensors"]));
    assert!(long.contains("linear_attn.A_log") && long.contains("F32"), "{long}");
    assert!(said(&mut place.alluvium(&["info", "run/trainer.safetensors", "--tensors"])).contains("moment."));
}

#[test]
fn operations_and_devices_are_listed() {
    let place = Place::new();
    let ops = said(&mut place.alluvium(&["ops"]));
    assert!(ops.lines().any(|line| line.starts_with("gated_delta_rule ")), "{ops}");
    assert!(said(&mut place.alluvium(&["ops", "--markdown"])).starts_with("# "));
    assert!(said(&mut place.alluvium(&["devices"])).starts_with("cpu "));
}

#[cfg(target_os = "linux")]
#[test]
fn compiled_kernels_are_cached_and_a_damaged_cache_is_ignored() {
    let place = Place::new();
    let check = |cache: &str| {
        let mut command = place.alluvium(&["check", "scale", "--device", "wgpu"]);
        command.env("XDG_CACHE_HOME", place.path(cache)).output().unwrap()
    };
    if !said(&mut place.alluvium(&["devices"])).contains("vulkan") {
        eprintln!("skipped: no GPU through Vulkan was found");
        return;
    }
    let files = || std::fs::read_dir(place.path("kept/alluvium")).unwrap().map(|file| file.unwrap().path());
    let first = check("kept");
    assert!(first.status.success(), "{first:?}");
    let file = files().next().unwrap();
    let sound = std::fs::read(&file).unwrap();
    for found in [sound.clone(), vec![0; sound.len()], sound[..sound.len() / 2].to_vec()] {
        std::fs::write(&file, found).unwrap();
        let again = check("kept");
        assert_eq!((again.status, &again.stdout), (first.status, &first.stdout));
        assert_eq!((files().count(), std::fs::read(&file).unwrap()), (1, sound.clone()));
    }
    let devices = said(place.alluvium(&["devices"]).env("XDG_CACHE_HOME", place.path("kept")));
    assert!(devices.contains(&format!("are cached in {}", place.path("kept/alluvium").display())), "{devices}");

    // the folder is a file; Mesa's separate cache reports that, the program does not
    let other = check("tiny.toml");
    assert_eq!((other.status, &other.stdout), (first.status, &first.stdout));
    assert!(!String::from_utf8_lossy(&other.stderr).contains("alluvium"), "{other:?}");
    let devices = said(place.alluvium(&["devices"]).env("XDG_CACHE_HOME", place.path("tiny.toml")));
    assert!(!devices.contains("kept"), "{devices}");
}

#[test]
fn one_operation_is_checked_and_timed() {
    let place = Place::new();
    let checked = said(&mut place.alluvium(&["check", "gdn_gate", "swiglu"]));
    assert!(checked.contains("2 operations") && checked.ends_with("all as the reference\n"), "{checked}");
    said(&mut place.alluvium(&["check", "swiglu", "--dtype", "bf16"]));
    let timed = said(&mut place.alluvium(&["bench", "gdn_gate", "--json"]));
    let lines: Vec<Value> = timed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines[0]["copy_gb_per_s"].as_f64().unwrap() > 0.0);
    assert!(lines.len() > 1 && lines[1..].iter().all(|line| line["op"] == "gdn_gate"));
    assert!(lines[1..].iter().all(|line| line["seconds"].as_f64().unwrap() > 0.0));
}

#[test]
fn a_closed_pipe_is_not_a_failure() {
    let place = Place::trained();
    for args in [
        &["ops", "--markdown"][..],
        &["info", "run", "--tensors"],
        &["generate", "--model", "run", "-p", "bada", "-m", "200", "--temp", "1"],
    ] {
        let mut child = place.alluvium(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 1];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn training_continues_when_standard_error_is_closed() {
    let place = Place::new();
    let mut child = place.train("run", &["--iters", "6"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert!(place.path("run/model.safetensors").exists());
}

#[test]
fn every_command_has_help_with_its_defaults() {
    let place = Place::new();
    let help = said(&mut place.alluvium(&["--help"]));
    for command in [
        "train",
        "generate",
        "chat",
        "convert",
        "quantize",
        "perplexity",
        "cache_prompt",
        "info",
        "models",
        "download",
        "completions",
        "man",
        "check",
        "bench",
        "ops",
        "devices",
    ] {
        assert!(help.contains(command), "{help}");
        assert!(said(&mut place.alluvium(&[command, "--help"])).contains("Usage: alluvium "));
    }
    let train = said(&mut place.alluvium(&["train", "--help"]));
    assert!(train.contains("learning_rate            0.004"), "{train}");
}

#[test]
fn a_task_is_trained_without_text_and_its_accuracy_is_among_the_metrics() {
    let place = Place::new();
    let args = ["train", "--task", "overwrite", "--out", "run", "--iters", "4", "--steps-per-eval", "2"];
    let out = said(place.alluvium(&args).args(["--val-batches", "1"]));
    assert!(out.contains("validation  accuracy ") && out.contains("run/loss.svg"), "{out}");
    let lines = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    assert_eq!(lines.matches("accuracy").count(), 2, "{lines}");
    assert!(said(&mut place.alluvium(&["info", "run"])).contains("qwen3_5"));
}

#[test]
fn a_task_is_resumed_from_its_folder_alone() {
    let place = Place::new();
    let settings = ["--val-batches", "1", "--batch-size", "2"];
    let run = |args: &[&str]| said(place.alluvium(args).args(settings));
    run(&["train", "--task", "recall", "--out", "run", "--iters", "2"]);
    run(&["train", "--resume", "--out", "run", "--iters", "4"]);
    run(&["train", "--task", "recall", "--out", "whole", "--iters", "4", "--warmup", "0"]);
    let lines = |run: &str| fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
    assert!(lines("run").contains("{\"step\":4,"), "{}", lines("run"));
}
