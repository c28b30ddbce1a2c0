//! Fine-tuning and distillation that end badly: a kill at any moment, a disk that takes no more.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, fixture, names, refused, said, tensors, text};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Six steps of two samples, each with a validation and a checkpoint.
fn finetune(place: &Place, out: &str, more: &[&str]) -> Command {
    let (model, data) = (fixture("models/qwen3_5-bf16-q4g64"), fixture("train/lora-data"));
    let mut command = place.alluvium(&["finetune", "--model", &model, "--data", &data, "--adapter-path", out]);
    command.args(["--batch-size", "2", "--num-layers", "2", "--learning-rate", "1e-3"]);
    command.args(["--save-every", "1", "--steps-per-report", "1", "--steps-per-eval", "3", "--sample-tokens", "0"]);
    with(&mut command, &[("--iters", "6")], more);
    command
}

/// Adds flags, and defaults for those that are not among them.
fn with(command: &mut Command, defaults: &[(&str, &str)], flags: &[&str]) {
    for (name, value) in defaults.iter().filter(|(name, _)| !flags.contains(name)) {
        command.args([name, value]);
    }
    command.args(flags);
}

fn dwq(place: &Place, more: &[&str]) -> Command {
    let model = fixture("models/qwen3_5-f32");
    let mut command = place.alluvium(&["dwq", "--model", &model, "--group-size", "32", "--num-samples", "6"]);
    let defaults =
        [("--bits", "3"), ("--data-path", "text/a.txt"), ("--max-seq-length", "32"), ("--mlx-path", "better")];
    with(&mut command, &defaults, more);
    command
}

/// The tensors of the adapter and of the state of a run.
fn left(folder: &Path) -> Vec<(serde_json::Map<String, serde_json::Value>, Vec<u8>)> {
    ["adapters.safetensors", "best_adapters.safetensors", "trainer.safetensors"]
        .map(|file| tensors(&folder.join(file)))
        .into()
}

/// Kills it after some time, or as soon as it has begun to write a file; whether it lived that long.
fn kill(command: &mut Command, folder: &Path, after: Option<Duration>) -> bool {
    let listed = || if folder.exists() { names(folder) } else { Vec::new() };
    let before = listed();
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let is_due = || match after {
        Some(after) => begun.elapsed() >= after,
        None => listed().iter().any(|name| name.ends_with(".partial") && !before.contains(name)),
    };
    loop {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if is_due() {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        sleep(Duration::from_micros(100));
    }
}

#[test]
fn a_fine_tuning_resumes_after_kills_at_any_moment_bit_for_bit() {
    let place = Place::new();
    let begun = Instant::now();
    said(&mut finetune(&place, "whole", &[]));
    let time = begun.elapsed();
    let whole = left(&place.path("whole"));
    let run = place.path("run");
    let can_resume = || run.join("trainer.safetensors").exists();
    let command = || finetune(&place, "run", if can_resume() { &["--resume"] } else { &[] });
    let mut kills = 0;
    for attempt in 0..8 {
        // early enough that some steps are left
        let moment = time.mul_f64(0.2 + 0.1 * f64::from(attempt));
        if !kill(&mut command(), &run, (attempt % 2 == 1).then_some(moment)) {
            break;
        }
        kills += 1;
        // whatever is there is whole
        for file in ["adapters.safetensors", "best_adapters.safetensors", "trainer.safetensors"] {
            if run.join(file).exists() {
                said(&mut place.alluvium(&["info", &format!("run/{file}")]));
            }
        }
    }
    assert!(kills > 1, "the run was over too soon to kill it");
    said(&mut command());
    assert!(left(&run) == whole, "another adapter or state");
    assert_eq!(names(&run), names(&place.path("whole")));
}

#[test]
fn a_kill_between_two_files_of_a_checkpoint_leaves_nothing_out_and_nothing_behind() {
    let place = Place::new();
    let run = place.path("run");
    let steps = |out: &str, iters: &[&str]| {
        for &iters in iters {
            let resume = if iters == "1" { &[][..] } else { &["--resume"] };
            said(&mut finetune(&place, out, &[&["--iters", iters], resume].concat()));
        }
    };
    steps("whole", &["1", "2", "3"]);
    steps("run", &["1"]);
    let first = fs::read(run.join("adapters.safetensors")).unwrap();
    steps("run", &["2"]);
    // the state of step 2 was written, its adapter was not
    fs::write(run.join("adapters.safetensors"), first).unwrap();
    fs::remove_file(run.join("0000002_adapters.safetensors")).unwrap();
    // the ninth is that of a run that was resumed with another --save-every: nothing writes it again
    for half in ["0000002_adapters.safetensors", "0000009_adapters.safetensors", "loss.svg", "trainer.safetensors"] {
        fs::write(run.join(format!(".{half}.aB3dE6gH.partial")), "half").unwrap();
    }
    let others = [".notes.txt.aB3dE6gH.partial", ".loss.svg.mine.partial"];
    others.iter().for_each(|name| fs::write(run.join(name), "another's").unwrap());
    steps("run", &["3"]);
    assert!(left(&run) == left(&place.path("whole")), "another adapter or state");
    let [second, whole] = ["run", "whole"].map(|out| tensors(&place.path(out).join("0000002_adapters.safetensors")));
    assert!(second == whole, "another adapter of step 2");
    others.iter().for_each(|name| fs::remove_file(run.join(name)).unwrap());
    assert_eq!(names(&run), names(&place.path("whole")));
}

/// A shell in which no file may grow past a number of KiB: writes fail, as they do on a full disk.
fn with_a_file_size_limit(command: &Command, kib: usize) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; ulimit -f $1; shift; exec \"$@\"", "sh", &kib.to_string()]);
    shell.arg(command.get_program()).args(command.get_args()).current_dir(command.get_current_dir().unwrap());
    shell
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_last_one() {
    let place = Place::new();
    said(&mut finetune(&place, "run", &["--iters", "2"]));
    let before = left(&place.path("run"));
    let size = fs::metadata(place.path("run/trainer.safetensors")).unwrap().len() as usize;
    let limited = with_a_file_size_limit(&finetune(&place, "run", &["--resume"]), size / 2048);
    let error = refused(&mut { limited });
    assert!(error.contains("error: cannot write run/") && error.contains("safetensors: File too large"), "{error}");
    assert!(left(&place.path("run")) == before, "the last checkpoint has changed");
    assert!(names(&place.path("run")).iter().all(|name| !name.ends_with(".partial")));
    said(&mut finetune(&place, "run", &["--resume"]));
    assert!(left(&place.path("run")) != before);
}

#[test]
fn a_distilled_model_or_targets_that_cannot_be_written_leave_nothing() {
    let place = Place::new();
    let size = |file: &str| fs::metadata(place.path(file)).unwrap().len() as usize;
    said(&mut dwq(&place, &["--mlx-path", "whole"]));
    let before = names(&place.path(""));
    let error = refused(&mut with_a_file_size_limit(&dwq(&place, &[]), size("whole/model.safetensors") / 2048));
    assert!(error.contains("model.safetensors: File too large"), "{error}");
    assert_eq!(names(&place.path("")), before);

    // a target is written whole or not at all, and the next run makes those that are missing
    let targets = ["--target-dir", "targets", "--targets-only"];
    let error = refused(&mut with_a_file_size_limit(&dwq(&place, &targets), 4));
    assert!(error.contains("cannot write targets/valid/0000000000.safetensors: File too large"), "{error}");
    assert_eq!(names(&place.path("targets/valid")), [""; 0]);
    // on a busy machine it may end before a half-written file is seen
    let _ = kill(&mut dwq(&place, &targets), &place.path("targets/train"), None);
    said(&mut dwq(&place, &targets));
    let left = names(&place.path("targets/train"));
    assert!(left.iter().any(|name| name == "0000000001.safetensors"), "{left:?}");
    said(&mut dwq(&place, &["--target-dir", "targets"]));
    assert!(place.path("better/model.safetensors").exists());
}

#[test]
fn wrong_flags_and_data_of_a_distillation_are_named() {
    let place = Place::new();
    let refused_with = |command: &mut Command, words: &str| {
        let error = refused(command);
        assert!(error.contains(words), "{words} in {error}");
    };
    refused_with(
        &mut dwq(&place, &["--bits", "7"]),
        "--bits 7 --group-size 32: 7 bits, expected 1, 2, 3, 4, 5, 6 or 8",
    );
    refused_with(&mut dwq(&place, &["--data-path", "none"]), "--data-path none: there is no such file or folder");
    refused_with(&mut dwq(&place, &["--temperature", "nan"]), "temperature is NaN");
    refused_with(&mut dwq(&place, &["--targets-only"]), "--target-dir");
    for flag in ["--grad-clip", "--scale", "--beta"] {
        refused_with(&mut finetune(&place, "adapters", &[flag, "nan"]), "expected a finite number");
    }
    let size = u64::MAX.to_string();
    refused_with(&mut finetune(&place, "adapters", &["--max-seq-length", &size]), "expected at most 4294967295");
    fs::write(place.path("bad.jsonl"), "{\"text\": \"a\"}\n{\"texts\": 1}\n").unwrap();
    refused_with(&mut dwq(&place, &["--data-path", "bad.jsonl"]), "bad.jsonl: line 2: the line has `texts`");
    fs::create_dir(place.path("better")).unwrap();
    refused_with(&mut dwq(&place, &[]), "better: it exists already");
    let model = fixture("models/qwen3_5-f32");
    let quant = |more: &[&str]| {
        let mut command = place.alluvium(&["dynamic_quant", "--model", &model, "--mlx-path", "quant"]);
        command.args(["--data-path", "text/a.txt", "--sequence-length", "32"]);
        with(&mut command, &[("--num-samples", "2")], more);
        command
    };
    refused_with(&mut quant(&["--target-bpw", "1"]), "the target is 1 bits per weight");
    refused_with(
        &mut quant(&["--sensitivities", "bad.jsonl"]),
        "bad.jsonl: expected a list of names and sensitivities",
    );
    refused_with(&mut quant(&["--num-samples", "0"]), "--num-samples is 0");
    refused_with(&mut quant(&["--high-bits", "3"]), "the high packing has to take more bits than the low one");
    let said = text(&quant(&["--target-bpw", "7", "--report-ppl"]).output().unwrap().stdout);
    assert!(said.contains("before") && said.contains("after") && said.contains("bits per weight"), "{said}");
}
