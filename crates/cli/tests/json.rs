//! `--json` of every command: the keys that docs/json.md lists, each of them and no other.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, fixture, refused, said};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The keys of each command in the table of docs/json.md.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let page = std::fs::read_to_string(fixture("../docs/json.md")).unwrap();
    let quoted = |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let mut all = BTreeMap::new();
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').collect();
        for command in quoted(cells[1]) {
            all.insert(command, quoted(cells[3]).into_iter().collect());
        }
    }
    all
}

/// The objects of an output, out of lists, too.
fn objects(out: &str) -> Vec<Value> {
    let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}")));
    lines.flat_map(|value| if let Value::Array(list) = value { list } else { vec![value] }).collect()
}

struct Checker {
    place: Place,
    documented: BTreeMap<String, BTreeSet<String>>,
}

impl Checker {
    fn new() -> Self {
        Checker { place: Place::new(), documented: documented() }
    }

    /// Runs a command and compares its keys with those of a row; `missing` are those that are not there in this case.
    fn run(&mut self, row: &str, args: &[&str], missing: &[&str]) -> Vec<Value> {
        let out = objects(&said(self.place.alluvium(args).arg("--json")));
        let mut keys: BTreeSet<String> = out.iter().flat_map(|o| o.as_object().unwrap().keys().cloned()).collect();
        keys.extend(missing.iter().map(|&key| key.to_owned()));
        let want = self.documented.remove(row).unwrap_or_else(|| panic!("{row} is not in docs/json.md"));
        assert!(!out.is_empty() && keys == want, "{row}: {keys:?}, documented {want:?}");
        out
    }
}

#[test]
fn results_have_the_documented_keys() {
    let mut checker = Checker::new();
    let (model, packed) = (fixture("models/qwen3_5-f32"), fixture("models/qwen3_5-q4g64"));
    let (data, lines) = (fixture("train/lora-data"), fixture("train/lora-data/train.jsonl"));
    let small = ["--num-samples", "2", "--batch-size", "1", "--max-seq-length", "33"];

    let tune = ["finetune", "--model", &model, "--data", &data, "--iters", "2", "--sample-tokens", "2", "--test"];
    let tune = [
        &tune[..],
        &["--train", "--test-batches", "1", "--val-batches", "1", "--num-layers", "4", "--adapter-path", "tuned"],
    ]
    .concat();
    let out = checker.run("finetune", &tune, &[]);
    assert_eq!((out.len(), &out[0]["steps"]), (1, &2.into()));
    assert!(out[0]["val_loss"].is_number() && out[0]["test_loss"].is_number() && out[0]["output"].is_string());
    let test = ["finetune", "--model", &model, "--data", &data, "--test", "--test-batches", "1"];
    checker.run("finetune --test", &[&test[..], &["--adapter-path", "tuned"]].concat(), &[]);
    checker.run("fuse", &["fuse", "--model", &model, "--adapter-path", "tuned", "--save-path", "fused"], &[]);

    let distill = ["distill", "--model", &model, "--student", "fused", "--data-path", &data, "--mlx-path", "student"];
    checker.run("distill", &[&distill[..], &small].concat(), &[]);
    let dwq = ["dwq", "--model", &model, "--group-size", "32", "--data-path", &data, "--mlx-path", "dwq"];
    checker.run("dwq", &[&dwq[..], &small].concat(), &[]);
    let targets = [&dwq[..5], &["--targets-only", "--target-dir", "targets"]].concat();
    let targets = [&targets[..], &["--data-path", &data], &small].concat();
    checker.run("dwq --targets-only", &targets, &[]);
    let dynamic = ["dynamic_quant", "--model", &model, "--mlx-path", "dynamic", "--data-path", &lines, "--report-ppl"];
    let dynamic = [
        &dynamic[..],
        &["--num-samples", "2", "--target-bpw", "8", "--low-group-size", "32", "--high-group-size", "32"],
    ]
    .concat();
    let out = checker.run("dynamic_quant", &[&dynamic[..], &["--sequence-length", "32"]].concat(), &[]);
    assert!(out[0]["perplexity"].is_number() && out[0]["modules_by_bits"].is_object(), "{out:?}");

    checker.run("convert", &["convert", "--hf-path", &model, "--mlx-path", "converted"], &[]);
    checker.run("quantize", &["quantize", "--model", &model, "--mlx-path", "packed", "--q-group-size", "32"], &[]);
    let file = ["--prompt-cache-file", "cache.safetensors"];
    checker.run("cache_prompt", &[&["cache_prompt", "--model", &packed, "-p", "a prompt"], &file[..]].concat(), &[]);
    let generate = ["generate", "--model", &packed, "-p", "a", "-m", "2"];
    checker.run("generate", &[&generate[..], &["--logprobs", "1"]].concat(), &[]);
    std::fs::write(checker.place.path("text.txt"), "The gated delta rule writes a correction.").unwrap();
    checker.run("perplexity", &["perplexity", "--model", &packed, "--data-path", "text.txt"], &[]);
    checker.run("info", &["info", &packed], &[]);
    checker.run("devices", &["devices"], &["name"]);
    let out = checker.run("ops", &["ops"], &[]);
    assert!(out.iter().any(|op| op["operation"] == "rms_norm" && op["has_gradient"] == true), "{out:?}");
    checker.run("check", &["check", "silu"], &[]);

    // those whose keys other tests see: a chat is a `generate` for each line, a Hub is needed for the others
    for other in ["chat", "models", "download", "train"] {
        assert!(checker.documented.remove(other).is_some(), "{other}");
    }
    assert!(checker.documented.is_empty(), "{:?} are documented and not tested", checker.documented);
}

#[test]
fn the_events_of_a_training_run_are_documented() {
    let place = Place::new();
    let page = std::fs::read_to_string(fixture("../docs/json.md")).unwrap();
    let out = said(&mut place.train("run", &["--iters", "4", "--steps-per-report", "2", "--json"]));
    let events = objects(&out);
    let (last, before) = events.split_last().unwrap();
    assert_eq!(last["event"], "summary");
    for key in last.as_object().unwrap().keys() {
        assert!(page.contains(&format!("`{key}`")), "{key}");
    }
    assert!(before.iter().all(|event| page.contains(&format!("`{}`", event["event"].as_str().unwrap()))), "{out}");
}

#[test]
fn every_command_with_results_takes_the_flag() {
    let place = Place::new();
    let help = said(&mut place.alluvium(&["--help"]));
    let list = help.split("Commands:").nth(1).unwrap().split("Options:").next().unwrap();
    let commands: Vec<&str> = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")).collect();
    let names: Vec<&str> = commands.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let has = said(&mut place.alluvium(&[name, "--help"])).contains("--json");
        let has_results = !["serve", "completions", "man"].contains(&name);
        assert_eq!(has, has_results, "{name}");
    }
    assert!(refused(&mut place.alluvium(&["ops", "--json", "--markdown"])).contains("cannot be used with"));
}
