//! Stopped and resumed runs: by Ctrl-C or a kill at any moment, the result is bit-identical to that of a run without a stop.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Left, Place, interrupt, names, prose, said, text};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Reports every third step: a stop falls between two of them.
const RUN: &[&str] = &["--iters", "40", "--steps-per-report", "3", "--steps-per-eval", "7"];
const ADAMW: &[&str] = &["--optimizer", "adamw"];
const MUON: &[&str] = &["--optimizer", "muon", "--grad-checkpoint", "true", "--grad-accumulation-steps", "2"];

fn uninterrupted(place: &Place, flags: &[&str]) -> Left {
    said(place.train("whole", RUN).args(flags));
    Left::of(&place.path("whole"))
}

fn interrupted_and_resumed(flags: &[&str]) {
    let place = Place::new();
    let whole = uninterrupted(&place, flags);
    let mut command = place.train("run", RUN);
    for stop in ["step 6/40", "step 24/40"] {
        let mut child = command.args(flags).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with(stop)), "never came to {stop}");
        interrupt(&child);
        lines.for_each(|line| drop(line.unwrap()));
        let mut out = String::new();
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{out}");
        assert!(
            out.starts_with("stopped after step ") && out.ends_with("saved in run, --resume continues it\n"),
            "{out}"
        );
        command = place.resume("run", RUN);
    }
    said(command.args(flags));
    whole.assert_same(&Left::of(&place.path("run")));
}

#[test]
fn adamw_resumes_after_ctrl_c_bit_for_bit() {
    interrupted_and_resumed(ADAMW);
}

#[test]
fn muon_with_recomputed_layers_resumes_after_ctrl_c_bit_for_bit() {
    interrupted_and_resumed(MUON);
}

/// Kills it: after some time, or as soon as a half-written file is seen.
fn kill(mut child: Child, place: &Place, attempt: u64) -> bool {
    let begun = Instant::now();
    let after = Duration::from_millis(40 + attempt * 7919 % 230);
    loop {
        let writing = || names(&place.path("run")).iter().any(|name| name.ends_with(".partial"));
        let due = match attempt % 2 {
            0 => begun.elapsed() >= after,
            _ => begun.elapsed() >= Duration::from_millis(80 + attempt * 13) && place.path("run").exists() && writing(),
        };
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if due {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        sleep(Duration::from_micros(200));
    }
}

/// Every file is whole and the program says what it can do with them.
fn assert_readable(place: &Place) {
    for file in ["run/model.safetensors", "run/trainer.safetensors"] {
        if place.path(file).exists() {
            said(&mut place.alluvium(&["info", file]));
        }
    }
    let generated = place.alluvium(&["generate", "--model", "run", "--prompt", "ba", "-m", "2"]).output().unwrap();
    let error = text(&generated.stderr);
    let has_model = place.path("run/config.json").exists();
    assert_eq!(generated.status.success(), has_model, "{error}");
    assert!(has_model || error.contains("there is no model here: config.json is missing"), "{error}");
}

fn killed_and_resumed(flags: &[&str]) {
    let place = Place::new();
    let whole = uninterrupted(&place, flags);
    let often = ["--save-every", "1"];
    let (mut kills, mut torn) = (0, 0);
    for attempt in 0..10 {
        let mut command = match place.path("run/trainer.safetensors").exists() {
            true => place.resume("run", RUN),
            false => place.train("run", RUN),
        };
        let child = command.args(flags).args(often).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        if !kill(child, &place, attempt) {
            break;
        }
        kills += 1;
        if place.path("run").exists() {
            torn += usize::from(names(&place.path("run")).iter().any(|name| name.ends_with(".partial")));
            assert_readable(&place);
        }
    }
    eprintln!("{kills} kills, {torn} of them left a half-written file");
    assert!(kills > 2, "the run was over too soon to kill it");
    let mut last = match place.path("run/trainer.safetensors").exists() {
        true => place.resume("run", RUN),
        false => place.train("run", RUN),
    };
    said(last.args(flags).args(often));
    whole.assert_same(&Left::of(&place.path("run")));
    assert!(names(&place.path("run")).iter().all(|name| !name.ends_with(".partial")));
}

#[test]
fn adamw_resumes_after_kills_at_any_moment_bit_for_bit() {
    killed_and_resumed(ADAMW);
}

#[test]
fn muon_with_recomputed_layers_resumes_after_kills_at_any_moment_bit_for_bit() {
    killed_and_resumed(MUON);
}

#[test]
fn recomputed_layers_give_bit_identical_results() {
    let place = Place::new();
    for (out, again) in [("kept", "false"), ("again", "true")] {
        said(&mut place.train(out, &["--iters", "6", "--grad-checkpoint", again]));
    }
    Left::of(&place.path("kept")).assert_same(&Left::of(&place.path("again")));
}

#[test]
fn a_seed_gives_the_same_run_and_another_seed_another() {
    let place = Place::new();
    let run = |out: &str, seed: &str| {
        said(&mut place.train(out, &["--iters", "4", "--seed", seed]));
        Left::of(&place.path(out))
    };
    let first = run("a", "1");
    first.assert_same(&run("b", "1"));
    assert!(first.model() != run("c", "2").model());
}

#[test]
fn a_run_that_was_killed_before_its_first_checkpoint_is_begun_again() {
    let place = Place::new();
    fs::create_dir(place.path("run")).unwrap();
    fs::write(place.path("run/tokenizer.json"), "half").unwrap();
    let metrics = "{\"format\":\"alluvium.metrics\",\"version\":1}\n{\"step\":1,\"tokens\":64}\n{\"st";
    fs::write(place.path("run/metrics.jsonl"), metrics).unwrap();
    fs::write(place.path("run/.trainer.safetensors.aB3dE6gH.partial"), "half").unwrap();
    let whole = uninterrupted(&place, ADAMW);
    said(place.train("run", RUN).args(ADAMW));
    whole.assert_same(&Left::of(&place.path("run")));
    assert!(names(&place.path("run")).iter().all(|name| !name.ends_with(".partial")));
}

#[test]
fn resuming_writes_a_model_that_a_kill_left_out() {
    let place = Place::new();
    let whole = uninterrupted(&place, ADAMW);
    for name in ["model.safetensors", "config.json", "loss.svg"] {
        fs::remove_file(place.path("whole").join(name)).unwrap();
    }
    said(place.resume("whole", RUN).args(ADAMW));
    whole.assert_same(&Left::of(&place.path("whole")));
    assert!(place.path("whole/config.json").exists());
}

#[test]
fn a_finished_run_is_extended_with_the_text_of_its_state() {
    let place = Place::trained();
    // the folder of the run lies beside its text now, and more runs do
    fs::rename(place.path("run"), place.path("text/run")).unwrap();
    said(&mut place.resume("text/run", &["--iters", "8"]));
    fs::rename(place.path("text"), place.path("moved")).unwrap();
    let error = common::refused(&mut place.resume("moved/run", &["--iters", "9"]));
    assert!(error.contains("the text of this run was at ") && error.contains("which is gone; give --data"), "{error}");
    said(&mut place.resume("moved/run", &["--iters", "9", "--data", "moved"]));
    said(&mut place.resume("moved/run", &["--iters", "10"]));
}

#[test]
fn a_run_that_has_all_its_steps_says_so() {
    let place = Place::trained();
    let output = place.resume("run", &["--iters", "6"]).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("all its steps: 6 of 6; --iters adds more"), "{said}");
}

#[test]
fn two_runs_in_one_folder_are_refused() {
    let place = Place::new();
    let mut first = place.train("run", &["--iters", "100000"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(first.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("step ")));
    let error = common::refused(&mut place.train("run", &[]));
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(error.contains("another run is writing to this folder"), "{error}");
}

/// SIGTERM, and how long the program took to end after it.
fn terminated(mut child: Child) -> (Option<i32>, Duration) {
    let since = Instant::now();
    let kill = std::process::Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    (child.wait().unwrap().code(), since.elapsed())
}

#[test]
fn a_polite_kill_ends_the_preparation_at_once_and_a_validation_soon() {
    let place = Place::new();
    fs::write(place.path("long.txt"), prose(3, 900_000)).unwrap();
    let args = ["--data", "long.txt", "--vocab-size", "4000", "--out", "early", "-c", "tiny.toml"];
    let mut child = place.alluvium(&["train"]).args(args).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("training the tokenizer")));
    let (code, after) = terminated(child);
    assert!(code == Some(143) && after < Duration::from_secs(5), "{code:?} after {after:?}");
    assert!(!place.path("early/model.safetensors").exists());

    // a model whose tensors take long to make
    let sizes = ["--hidden-size", "2048", "--intermediate-size", "8192", "--num-hidden-layers", "16"];
    let mut child = place.train("large", &sizes).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("making the model")));
    sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it ended before it could be stopped");
    let (code, after) = terminated(child);
    assert!(code == Some(143) && after < Duration::from_secs(5), "{code:?} after {after:?}");
    assert!(!place.path("large").exists() || names(&place.path("large")).is_empty());

    let flags = ["--val-split", "0.9", "--val-batches", "0", "--steps-per-eval", "1", "--steps-per-report", "1"];
    let args = ["train", "--data", "long.txt", "--out", "late", "-c", "tiny.toml"];
    let mut child = place.alluvium(&args).args(flags).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("step 1/")));
    let drain = std::thread::spawn(move || lines.for_each(drop));
    let (code, after) = terminated(child);
    drain.join().unwrap();
    assert!(code == Some(143) && after < Duration::from_secs(20), "{code:?} after {after:?}");
    assert!(place.path("late/model.safetensors").exists());
}
