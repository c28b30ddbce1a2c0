//! What a new user meets: names of models, memory, reports of runs, tips, completions.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, fixture, names, refused, refused_with, said, text};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Puts a model of the fixtures into the cache of a place.
fn cached(place: &Place, name: &str, model: &str) {
    let folder = place.path("hub/hub").join(format!("models--{}", name.replace('/', "--")));
    let snapshot = folder.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(folder.join("blobs")).unwrap();
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::write(folder.join("refs/main"), COMMIT).unwrap();
    for (number, file) in fs::read_dir(fixture(model)).unwrap().map(Result::unwrap).enumerate() {
        fs::copy(file.path(), folder.join("blobs").join(number.to_string())).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{number}"), snapshot.join(file.file_name())).unwrap();
    }
}

#[test]
fn a_model_in_the_cache_is_found_by_its_name_and_listed() {
    let place = Place::new();
    cached(&place, "org/tiny", "models/qwen3_5-q4g64");
    let generate = |model: &str| {
        let args = ["generate", "--model", model, "-p", "hello", "-m", "4", "--temp", "0"];
        said(&mut place.alluvium(&args))
    };
    assert_eq!(generate("org/tiny"), generate(&fixture("models/qwen3_5-q4g64")));
    assert_eq!(generate("org/tiny"), generate(&format!("org/tiny@{COMMIT}")));
    said(&mut place.alluvium(&["convert", "--hf-path", "org/tiny", "--mlx-path", "new", "-d"]));
    assert!(said(&mut place.alluvium(&["info", "org/tiny"])).contains("qwen3_5"));
    let list = said(&mut place.alluvium(&["models"]));
    assert!(
        list.starts_with("org/tiny ") && list.contains("qwen3_5") && list.contains("4 bits in groups of 64"),
        "{list}"
    );
    let json: Value = serde_json::from_str(&said(&mut place.alluvium(&["models", "--json"]))).unwrap();
    assert_eq!((&json[0]["name"], &json[0]["commit"]), (&"org/tiny".into(), &COMMIT.into()));
    refused_with(&mut place.alluvium(&["info", "org/tiny@v9"]), &["org/tiny@v9: there is no such folder"]);
    refused_with(&mut place.alluvium(&["info", "tiny"]), &["tiny: there is no such file or folder", "org/name"]);
    // a folder goes before a name
    fs::create_dir_all(place.path("org/tiny")).unwrap();
    refused_with(&mut place.alluvium(&["generate", "--model", "org/tiny", "-p", "a"]), &["config.json is missing"]);
}

/// Serves the files of a model, with their lengths as tags, until the test ends.
fn server(model: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let Some(request) = lines.next() else { continue };
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let path = request.split(' ').nth(1).unwrap();
            let (mut tag, mut body) = (String::new(), Vec::new());
            if path.starts_with("/api/models/org/tiny/") {
                let files: Vec<String> = names(Path::new(&fixture(model)))
                    .iter()
                    .map(|name| format!("{{\"rfilename\":\"{name}\"}}"))
                    .collect();
                body = format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", files.join(",")).into_bytes();
            } else if let Some((_, name)) = path.split_once(&format!("/{COMMIT}/")) {
                body = fs::read(Path::new(&fixture(model)).join(name)).unwrap();
                tag = format!("ETag: \"{}-{}\"\r\n", name.replace('.', "_"), body.len());
            }
            let status = if body.is_empty() { "404 X" } else { "200 X" };
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{tag}\r\n");
            let _ = stream.write_all(head.as_bytes());
            if !request.starts_with("HEAD") {
                let _ = stream.write_all(&body);
            }
        }
    });
    address
}

#[test]
fn a_model_is_downloaded_by_its_name_and_used_without_the_network_afterwards() {
    let place = Place::new();
    let endpoint = server("models/llama-f32");
    let generate = ["generate", "--model", "org/tiny", "-p", "hello", "-m", "4", "--temp", "0"];
    refused_with(&mut place.alluvium(&generate), &["HF_HUB_OFFLINE is set"]);
    let online = |args: &[&str]| {
        let mut command = place.alluvium(args);
        command.env("HF_ENDPOINT", &endpoint).env_remove("HF_HUB_OFFLINE");
        command
    };
    let fetched = said(&mut online(&generate));
    assert_eq!(fetched, said(&mut place.alluvium(&generate)));
    assert!(said(&mut online(&["download", "org/tiny"])).trim().ends_with(COMMIT));
    refused_with(&mut online(&["download", "org/none"]), &["org/none: ", "has no such model; look at its spelling"]);
    refused_with(&mut online(&["chat", "--model", "org/none"]), &["there is no such folder, and fetching it failed"]);
    refused_with(&mut online(&["download", "none"]), &["none: expected org/name"]);
    let mut unreachable = online(&["download", "org/tiny"]);
    refused_with(unreachable.env("HF_ENDPOINT", "http://127.0.0.1:9"), &["127.0.0.1:9 cannot be reached"]);
}

#[test]
fn a_model_that_does_not_fit_is_refused_before_it_is_made() {
    let place = Place::new();
    let sizes = ["--hidden-size", "16384", "--intermediate-size", "65536", "--num-hidden-layers", "64"];
    let error = refused(place.train("run", &["--preset", "base"]).args(sizes));
    assert!(error.contains("of weights,\n") && error.contains("of gradients and moments, about "), "{error}");
    assert!(error.contains("error: this needs about ") && error.contains("and the machine has "), "{error}");
    assert!(error.contains("--ignore-memory begins anyhow"), "{error}");
    assert!(!place.path("run").exists());
    let out = place.train("run", &["--iters", "1"]).output().unwrap();
    assert!(text(&out.stderr).contains("memory    "), "{}", text(&out.stderr));
}

#[test]
fn a_run_leaves_a_report_and_settings_that_give_the_same_run_again() {
    let place = Place::new();
    let flags = ["--iters", "4", "--learning-rate", "0.002", "--steps-per-report", "2"];
    let first = said(place.train("run", &flags).arg("--json"));
    let json: Value = serde_json::from_str(first.lines().last().unwrap()).unwrap();
    assert!(json["bits_per_byte"].as_f64().unwrap() > 1.0 && json["step"] == 4, "{json}");
    let again = ["train", "--data", "text", "--out", "again", "--config", "run/config.toml", "--sample-tokens", "3"];
    let out = said(&mut place.alluvium(&again));
    assert!(out.contains(" bits per byte, perplexity ") && out.contains("report      again/report.md"), "{out}");
    let [a, b] = ["run", "again"].map(|run| fs::read(place.path(run).join("model.safetensors")).unwrap());
    assert!(a == b, "another model");
    let report = fs::read_to_string(place.path("again/report.md")).unwrap();
    for words in ["| machine | ", "| text | 2 files", "| bits per byte | ", "![Loss", "## Sample", "iters = 4\n"] {
        assert!(report.contains(words), "{words} in {report}");
    }
    said(&mut place.resume("run", &["--iters", "6"]));
    let report = fs::read_to_string(place.path("run/report.md")).unwrap();
    assert!(report.contains("| steps | 2 in ") && report.contains(" since step 4 |"), "{report}");
    assert!(fs::read_to_string(place.path("run/config.toml")).unwrap().contains("iters = 6\n"));
}

#[test]
fn a_run_shows_samples_at_its_validations_and_writes_lines_of_json() {
    let place = Place::new();
    let flags = ["--iters", "6", "--steps-per-report", "2", "--steps-per-eval", "2"];
    let output = place.train("run", &flags).args(["--json", "--sample-prompt", "bada "]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("sample    at step 2, after \"bada \": \""), "{}", text(&output.stderr));
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<(&str, u64)> =
        lines.iter().map(|line| (line["event"].as_str().unwrap(), line["step"].as_u64().unwrap())).collect();
    let expected = [2, 4].map(|step| [("report", step), ("validation", step), ("sample", step)]).concat();
    assert_eq!(events, [&expected[..], &[("report", 6), ("validation", 6), ("summary", 6)]].concat());
    assert!(lines[0]["loss"].as_f64().unwrap() > 1.0 && lines[1]["val_loss"].as_f64().unwrap() > 1.0, "{lines:?}");
    let sample = lines[2]["text"].as_str().unwrap();
    assert!(!sample.is_empty() && lines[2]["prompt"] == "bada ", "{lines:?}");
    let report = fs::read_to_string(place.path("run/report.md")).unwrap();
    assert!(report.contains(&format!("At step 2:\n\n```text\nbada {sample}\n```\n")), "{report}");
    // samples change nothing of the run
    let quiet = place.train("without", &flags).args(["--eval-sample-tokens", "0"]).output().unwrap();
    assert!(quiet.status.success() && !text(&quiet.stderr).contains("sample "), "{}", text(&quiet.stderr));
    let [with, without] = ["run", "without"].map(|run| fs::read(place.path(run).join("model.safetensors")).unwrap());
    assert!(with == without, "another model");
}

#[test]
fn a_model_is_timed_as_llama_bench_does() {
    let place = Place::new();
    let model = fixture("models/qwen3_5-q4g64");
    let bench = ["bench", "--model", &model, "-p", "32", "-g", "8", "-n", "2"];
    let table = said(&mut place.alluvium(&bench));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert!(lines[2].contains("| pp32 | ") && lines[3].contains("| tg8 | ") && lines[3].contains(" ± "), "{table}");
    let json = said(place.alluvium(&bench).arg("--json"));
    let tests: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(tests.iter().all(|test| test["tokens_per_second"].as_f64().unwrap() > 1.0));
    assert_eq!(tests[0]["trials"].as_array().unwrap().len(), 2);
    refused_with(&mut place.alluvium(&["bench", "--model", &model, "relu"]), &["cannot be used with"]);
}

#[test]
fn the_version_names_commit_and_target() {
    let place = Place::new();
    let version = said(&mut place.alluvium(&["--version"]));
    assert!(version.starts_with("alluvium 0.") && version.contains(std::env::consts::ARCH), "{version}");
}

#[test]
fn completions_and_manual_pages_know_all_commands() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = said(&mut place.alluvium(&["completions", shell]));
        assert!(script.contains("perplexity") && script.contains("reasoning-budget"), "{shell}");
    }
    said(&mut place.alluvium(&["man", "pages"]));
    let pages = names(&place.path("pages"));
    assert!(pages.contains(&"alluvium.1".to_owned()) && pages.contains(&"alluvium-train.1".to_owned()), "{pages:?}");
    let page = fs::read_to_string(place.path("pages/alluvium-generate.1")).unwrap();
    assert!(page.contains("reasoning\\-budget"), "{page}");
}

#[test]
fn commands_of_other_programs_get_a_tip() {
    let place = Place::new();
    for (command, tip) in [("run", "`alluvium chat"), ("list", "`alluvium models`"), ("sft", "`alluvium finetune")] {
        let error = refused(&mut place.alluvium(&[command]));
        assert!(error.contains("unrecognized subcommand") && error.contains(tip), "{error}");
    }
    let bare = refused(&mut place.alluvium(&["generate", "models/a", "-p", "b"]));
    assert!(bare.contains("the model's flag is --model"), "{bare}");
    refused_with(
        &mut place.alluvium(&["chat", "--model", "tiny.toml"]),
        &["tiny.toml: it is a file, expected the folder"],
    );
    refused_with(&mut place.alluvium(&["info", "tiny.toml"]), &["tiny.toml: it is no folder of a model"]);
    refused_with(&mut place.alluvium(&["info", "text", "--device", "cuda"]), &["--device"]);
    refused_with(&mut place.alluvium(&["check", "--device", "mps", "silu"]), &["`wgpu` here, through Metal"]);
    refused_with(&mut place.alluvium(&["check", "--device", "cuda:99", "silu"]), &["cuda:99: "]);
    for args in [&["genrate"][..], &["help", "genrate"]] {
        let error = refused(&mut place.alluvium(args));
        assert!(error.contains("a similar subcommand exists: 'generate'"), "{args:?}: {error}");
    }
    let error = refused(&mut place.alluvium(&["help", "ls"]));
    assert!(error.contains("unrecognized subcommand 'ls'") && error.contains("`alluvium models`"), "{error}");
}
