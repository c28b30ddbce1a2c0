//! Texts and folders that users of similar programs have, each a kind that some program trains on wrongly.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, fixture, names, refused, said, text};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A place whose `prose.txt` is that of the cases, and `train` with the smallest settings.
fn place() -> Place {
    let place = Place::new();
    fs::copy(case("prose.txt"), place.path("prose.txt")).unwrap();
    place
}

fn case(name: &str) -> String {
    fixture(&format!("cases/training/{name}"))
}

fn train(place: &Place, data: &[&str], more: &[&str]) -> Command {
    let mut command = place.alluvium(&["train", "--config", "tiny.toml", "--sample-tokens", "0", "--out", "out"]);
    if !more.contains(&"--iters") {
        command.args(["--iters", "2"]);
    }
    command.arg("--data").args(data).args(more);
    command
}

/// What `train` says on standard error before it ends; its folder is removed.
fn told(place: &Place, data: &[&str], more: &[&str]) -> String {
    let output = train(place, data, more).output().unwrap();
    let _ = fs::remove_dir_all(place.path("out"));
    text(&output.stderr)
}

fn line<'a>(said: &'a str, beginning: &str) -> &'a str {
    said.lines().find(|line| line.starts_with(beginning)).unwrap_or_else(|| panic!("no {beginning:?} in {said}"))
}

/// A count as the program writes it.
fn tokens(word: &str, unit: &str) -> f64 {
    let factor = [("k", 1e3), ("M", 1e6)].into_iter().find(|(name, _)| *name == unit).map_or(1.0, |(_, factor)| factor);
    word.parse::<f64>().unwrap() * factor
}

/// The share of the tokens that validation has.
fn validation_share(said: &str) -> f64 {
    let words: Vec<&str> = line(said, "tokens ").split_whitespace().collect();
    let at = |word: &str| words.iter().position(|w| *w == word).unwrap();
    let number = |end: usize| match words[end - 1].parse::<f64>() {
        Ok(_) => tokens(words[end - 1], ""),
        Err(_) => tokens(words[end - 2], words[end - 1]),
    };
    let (trained, validation) = (number(at("to")), number(at("for")));
    validation / (trained + validation)
}

#[test]
fn texts_without_line_ends_are_trained_on() {
    let place = place();
    for name in ["oneline.txt", "cr.txt", "nolf.json", "u2028.txt"] {
        let said = told(&place, &[&case(&format!("one-line-text/{name}"))], &[]);
        let share = validation_share(&said);
        assert!((0.03..0.08).contains(&share), "{name}: {share} in {said}");
    }
}

#[test]
fn a_text_of_one_long_word_takes_linear_time() {
    let place = place();
    let letters: String = (0..1_000_000u64).map(|i| b"ACGT"[(i * i / 7 + i) as usize % 4] as char).collect();
    fs::write(place.path("dna.txt"), letters).unwrap();
    let started = Instant::now();
    said(&mut train(&place, &["dna.txt"], &["--held-out", "0"]));
    // with the square of the length it took minutes
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn the_end_of_text_follows_a_document_and_no_line() {
    let place = place();
    let line = "0123456789".repeat(500) + "\n";
    fs::write(place.path("digits.txt"), line.repeat(60)).unwrap();
    let settings = ["--vocab-size", "257", "--batch-size", "8", "--max-seq-length", "64", "--learning-rate", "0.01"];
    said(&mut train(&place, &["digits.txt"], &[&settings[..], &["--iters", "60"]].concat()));
    let generate = ["generate", "--model", "out", "--temp", "0", "-m", "20", "--json", "--logprobs", "3"];
    let json: Value = serde_json::from_str(&said(place.alluvium(&generate).args(["-p", "0123456789\\n"]))).unwrap();
    assert!(json["text"].as_str().unwrap().starts_with("0123456789"), "{json}");
    assert_eq!(json["finish_reason"], "length", "{json}");
}

#[test]
fn the_same_text_given_twice_is_read_once() {
    let place = place();
    fs::create_dir(place.path("d")).unwrap();
    fs::copy(place.path("prose.txt"), place.path("d/a.txt")).unwrap();
    for data in [&["d"][..], &["d", "d/a.txt"], &["d", "./d"], &["d/a.txt", "d/a.txt"]] {
        let said = told(&place, data, &[]);
        assert!(line(&said, "text ").starts_with("text      1 files, 58.6 KiB "), "{said}");
    }
}

#[test]
fn the_share_for_validation_is_one_of_bytes() {
    let place = place();
    let words = |n: usize| "abc defg hb ".chars().cycle().take(n).collect::<String>();
    let lines: Vec<String> =
        (0..20).map(|i| format!("{{\"text\":\"{i}{}\"}}", words(if i == 7 { 100_000 } else { 500 }))).collect();
    fs::write(place.path("a.jsonl"), lines.join("\n")).unwrap();
    fs::write(place.path("small.txt"), words(30_000)).unwrap();
    fs::write(place.path("large.txt"), words(600_000)).unwrap();
    for data in [&["a.jsonl"][..], &["small.txt", "large.txt"]] {
        for seed in ["0", "1", "2", "3"] {
            let share = validation_share(&told(&place, data, &["--seed", seed]));
            assert!((0.02..0.11).contains(&share), "{data:?}, seed {seed}: {share}");
        }
    }
}

#[test]
fn links_to_texts_are_followed() {
    use std::os::unix::fs::symlink;
    let place = place();
    for folder in ["hub/blobs", "hub/snapshots/abc", "mixed"] {
        fs::create_dir_all(place.path(folder)).unwrap();
    }
    fs::copy(place.path("prose.txt"), place.path("hub/blobs/4f1d")).unwrap();
    fs::write(place.path("mixed/a.txt"), fs::read_to_string(place.path("prose.txt")).unwrap().to_uppercase()).unwrap();
    symlink("../../blobs/4f1d", place.path("hub/snapshots/abc/train.txt")).unwrap();
    symlink("../hub/blobs/4f1d", place.path("mixed/b.txt")).unwrap();
    symlink("../hub/blobs", place.path("mixed/more")).unwrap();
    for (data, files) in [("hub/snapshots/abc", 1), ("mixed", 2), ("hub/snapshots/abc/train.txt", 1)] {
        let said = told(&place, &[data], &[]);
        assert!(line(&said, "text ").starts_with(&format!("text      {files} files, ")), "{data}: {said}");
    }
}

fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    names(folder).into_iter().map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

#[test]
fn a_folder_with_a_model_in_parts_is_left_as_it_is() {
    let place = place();
    let model = place.path("out");
    fs::create_dir(&model).unwrap();
    for (name, text) in [
        ("model.safetensors.index.json", "{\"weight_map\":{}}"),
        ("model-00001-of-00002.safetensors", "weights"),
        ("config.json", "{\"mine\":\"config\"}"),
        ("tokenizer.json", "{\"mine\":\"tokenizer\"}"),
        ("metrics.jsonl", "{\"loss\":3.5}"),
    ] {
        fs::write(model.join(name), text).unwrap();
    }
    let before = contents(&model);
    let error = refused(&mut train(&place, &["prose.txt"], &[]));
    assert!(error.contains("it already holds "), "{error}");
    assert!(!error.contains("reading text"), "before the text is read: {error}");
    assert_eq!(contents(&model), before);
}

#[test]
fn the_folder_of_the_text_cannot_be_that_of_the_run() {
    let place = place();
    fs::create_dir(place.path("data")).unwrap();
    fs::copy(place.path("prose.txt"), place.path("data/prose.txt")).unwrap();
    let absolute = place.path("data").display().to_string();
    for out in ["data", "./data/", &absolute] {
        let mut command = place.alluvium(&["train", "--config", "tiny.toml", "--data", "data", "--out", out]);
        let error = refused(&mut command);
        assert!(error.contains("choose another --out"), "{error}");
        assert_eq!(names(&place.path("data")), ["prose.txt"]);
    }
}

#[test]
fn files_that_an_ignore_file_leaves_out_are_counted() {
    let place = place();
    fs::create_dir_all(place.path("p/data")).unwrap();
    fs::copy(place.path("prose.txt"), place.path("p/data/a.txt")).unwrap();
    for (file, pattern) in [
        (".gitignore", "data/*"),
        (".gitignore", "*.txt"),
        (".gitignore", "/data/**"),
        (".gitignore", "a.*"),
        (".ignore", "*.txt"),
    ] {
        fs::write(place.path("p").join(file), pattern).unwrap();
        let error = refused(&mut train(&place, &["p/data"], &[]));
        assert!(error.contains("hidden, or named in .gitignore or .ignore: 1"), "{pattern}: {error}");
        fs::remove_file(place.path("p").join(file)).unwrap();
    }
    let error = refused(&mut train(&place, &["/dev/null"], &[]));
    assert!(error.contains("neither a regular file nor a folder"), "{error}");
}

#[test]
fn lines_of_another_program_and_a_spoilt_line_are_kept() {
    let place = place();
    fs::create_dir(place.path("out")).unwrap();
    let theirs = "{\"loss\":3.5,\"epoch\":1}\n{\"loss\":3.1,\"epoch\":2}\n";
    fs::write(place.path("out/metrics.jsonl"), theirs).unwrap();
    let error = refused(&mut train(&place, &["prose.txt"], &[]));
    assert!(error.contains("not written by a training run"), "{error}");
    assert_eq!(fs::read_to_string(place.path("out/metrics.jsonl")).unwrap(), theirs);
    fs::remove_dir_all(place.path("out")).unwrap();

    said(&mut train(&place, &["prose.txt"], &["--steps-per-report", "1", "--iters", "20"]));
    let path = place.path("out/metrics.jsonl");
    let before = fs::read_to_string(&path).unwrap();
    let spoilt: Vec<&str> = before.lines().enumerate().map(|(i, line)| if i == 7 { "garbage" } else { line }).collect();
    fs::write(&path, spoilt.join("\n") + "\n").unwrap();
    said(&mut place.alluvium(&["train", "--resume", "--out", "out", "--iters", "22", "--sample-tokens", "0"]));
    let after = fs::read_to_string(&path).unwrap();
    assert!(after.lines().count() >= before.lines().count() + 2, "{after}");
    assert!(after.contains("garbage\n"));
}

#[test]
fn a_head_without_width_is_refused() {
    let error = refused(&mut train(&place(), &["prose.txt"], &["--head-dim", "0"]));
    assert!(error.contains("head_dim is 0, expected 1 or more"), "{error}");
}
