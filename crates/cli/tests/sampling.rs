//! Where the sampling comes from, what ends an answer, and how a conversation in the terminal goes on.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, copied, fixture, refused_with, said, text};
use serde_json::Value;
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn given(command: &mut Command, input: &str) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn sampling_comes_from_flags_then_the_models_file_then_defaults_and_is_said() {
    let place = Place::new();
    let model = copied(&place, "models/qwen3_5-f32");
    let line = |file: &str, flags: &[&str]| {
        std::fs::write(model.join("generation_config.json"), file).unwrap();
        let generate = ["generate", "--model", "model", "-p", "hello", "-m", "1", "--seed", "7"];
        let output = place.alluvium(&generate).args(flags).output().unwrap();
        let errors = text(&output.stderr);
        errors.lines().find(|line| line.starts_with("sampling ")).unwrap_or(&errors).to_owned()
    };
    let file = r#"{"do_sample":true,"temperature":0.6,"top_k":20,"top_p":0.95,"presence_penalty":1.5}"#;
    for (file, flags, said) in [
        (file, &[][..], "temp 0.6, top-k 20, top-p 0.95, presence-penalty 1.5 from generation_config.json · seed 7"),
        (file, &["--temp", "0"], "greedy (--temp X samples) · presence-penalty 1.5 from generation_config.json"),
        (file, &["--temp", "1", "--top-k", "0"], "temp 1 from flags · top-p 0.95, presence-penalty 1.5 from"),
        (r#"{"do_sample":true}"#, &[], "temp 1 from generation_config.json · seed 7"),
        (r#"{"do_sample":false,"temperature":0.6}"#, &[], "greedy (--temp X samples)"),
        ("{}", &["--temperature", "0.5", "--min-p", "0.1"], "temp 0.5, min-p 0.1 from flags · seed 7"),
        (r#"{"temperature":"hot"}"#, &[], "generation_config.json: `temperature` is \"hot\", expected a number"),
        (r#"{"do_sample":1}"#, &[], "`do_sample` is 1, expected true or false"),
    ] {
        let found = line(file, flags);
        assert!(found.contains(said), "{file} {flags:?}: {found}");
    }
}

#[test]
fn a_run_without_a_seed_prints_one_that_repeats_it() {
    let place = Place::trained();
    let generate = ["generate", "--model", "run", "-p", "bada", "-m", "30", "--temp", "1", "--json"];
    let run = |more: &[&str]| serde_json::from_str::<Value>(&said(place.alluvium(&generate).args(more))).unwrap();
    let [first, second] = [run(&[]), run(&[])];
    assert_ne!(first["tokens"], second["tokens"]);
    assert_eq!(run(&["--seed", &first["seed"].to_string()])["tokens"], first["tokens"]);
}

#[test]
fn a_presence_penalty_ends_repetition() {
    let place = Place::new();
    let args = ["generate", "--model", &fixture("models/llama-f32"), "-p", "a", "-m", "24", "--temp", "0", "--json"];
    let distinct = |more: &[&str]| {
        let out: Value = serde_json::from_str(&said(place.alluvium(&args).args(more))).unwrap();
        let mut tokens: Vec<u64> = out["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens.len()
    };
    assert_eq!(distinct(&["--presence-penalty", "1000"]), 24);
    assert!(distinct(&[]) < 24);
    refused_with(place.alluvium(&args).args(["--presence-penalty", "nan"]), &["the presence penalty is NaN"]);
}

#[test]
fn reasoning_is_kept_out_of_the_answer_and_limited_by_its_budget() {
    let place = Place::new();
    let model = fixture("cases/inference/think-1-special-tokens");
    let generate = ["generate", "--model", &model, "-p", "a", "--temp", "0"];
    let run = |more: &[&str]| {
        let output = place.alluvium(&generate).args(more).output().unwrap();
        (text(&output.stdout), text(&output.stderr))
    };
    let (answer, aside) = run(&[]);
    assert!(answer == "b\n" && aside.contains("a\n---\n"), "{answer}{aside}");
    let (answer, aside) = run(&["--quiet"]);
    assert!(answer == "b\n" && aside.is_empty(), "{answer}{aside}");
    assert_eq!(run(&["--verbose", "False"]), run(&["--quiet"]));
    let parts = |more: &[&str]| {
        let json: Value = serde_json::from_str(&run(&[more, &["--json"]].concat()).0).unwrap();
        [json["reasoning"].clone(), json["text"].clone()]
    };
    assert_eq!(parts(&[]), ["a", "b"]);
    assert_eq!(parts(&["--reasoning-budget", "1"]), ["a", "b"]);
    assert_eq!(parts(&["--reasoning-budget", "0"]), ["", "b"]);
    let (answer, aside) = run(&["-m", "1"]);
    assert_eq!(answer, "\n");
    assert!(aside.contains("cut off inside the reasoning, after 1 tokens; -m N allows more"), "{aside}");
}

#[test]
fn an_answer_that_is_cut_off_says_so_and_an_empty_one_leaves_its_message_out() {
    let place = Place::new();
    let model = fixture("cases/inference/think-1-special-tokens");
    let output = given(&mut place.alluvium(&["chat", "--model", &model, "-m", "1", "--temp", "0"]), "c\nd\n/tokens\n");
    let errors = text(&output.stderr);
    assert!(errors.contains("the message was left out; /retry asks again"), "{errors}");
    // the template of this model refuses a second message
    assert!(!errors.contains("error: "), "{errors}");
}

#[test]
fn a_conversation_is_saved_loaded_undone_and_asked_again() {
    let place = Place::new();
    let model = fixture("models/qwen3_next-q4g64");
    let chat = ["chat", "--model", &model, "-m", "8", "--temp", "0", "--json"];
    let input =
        "one\n\"\"\"two\n  and more\n\"\"\"\n/save chat.json\n/undo\n/retry\nthree\\\nlines\n/save other.json\n";
    let output = given(&mut place.alluvium(&chat), input);
    assert_eq!(text(&output.stdout).lines().count(), 4, "{}", text(&output.stderr));
    let users = |file: &str| {
        let json: Value = serde_json::from_slice(&std::fs::read(place.path(file)).unwrap()).unwrap();
        let messages = json["messages"].as_array().unwrap().clone();
        let of_user = messages.iter().filter(|message| message["role"] == "user");
        of_user.map(|message| message["content"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(users("chat.json"), ["one", "two\n  and more"]);
    assert_eq!(users("other.json"), ["one", "three\nlines"]);
    std::fs::write(place.path("bad.json"), "{\"messages\": [{\"content\": 3}]}").unwrap();
    let input = "/load chat.json\nnext\n/save more.json\n/load bad.json\n/load none.json\n/save\n/save no/such/place\n";
    let output = given(&mut place.alluvium(&chat), input);
    assert_eq!(users("more.json"), ["one", "two\n  and more", "next"]);
    let errors = text(&output.stderr);
    for words in
        ["chat.json: 4 messages loaded", "bad.json: expected `messages`", "cannot read none.json", "/save needs"]
    {
        assert!(errors.contains(words), "{words} in {errors}");
    }
    assert!(output.status.success());
}

#[test]
fn a_chat_takes_a_template_from_a_file() {
    let place = Place::trained();
    let chat = ["chat", "--model", "run", "-m", "4", "--temp", "0"];
    refused_with(&mut place.alluvium(&chat), &["no chat template", "--chat-template FILE gives a template"]);
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    std::fs::write(place.path("chat.jinja"), template).unwrap();
    let output = given(place.alluvium(&chat).args(["--chat-template", "chat.jinja"]), "hello\n");
    assert!(output.status.success() && !output.stdout.is_empty(), "{}", text(&output.stderr));
    std::fs::write(place.path("chat.jinja"), "{{ raise_exception('no') }}").unwrap();
    refused_with(
        place.alluvium(&chat).args(["--chat-template", "chat.jinja"]),
        &["no (in the file of --chat-template:1)"],
    );
    refused_with(place.alluvium(&chat).args(["--chat-template", "none"]), &["--chat-template: cannot read none"]);
}

#[test]
fn a_prompt_beyond_the_positions_of_a_model_is_warned_of() {
    let place = Place::new();
    let model = copied(&place, "models/llama-f32");
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = 4.into();
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    let output = place.alluvium(&["generate", "--model", "model", "-p", "hello there", "-m", "1"]).output().unwrap();
    let errors = text(&output.stderr);
    assert!(errors.contains("tokens, the model was made for 4 (max_position_embeddings)"), "{errors}");
}

#[test]
fn threads_are_chosen_by_a_flag() {
    let place = Place::new();
    for command in [&["--threads", "1", "devices"][..], &["devices", "--threads", "1"]] {
        let devices = said(&mut place.alluvium(command));
        assert!(devices.starts_with("cpu     1 threads"), "{devices}");
    }
    refused_with(&mut place.alluvium(&["devices", "--threads", "0"]), &["'0' for '--threads <N>'"]);
    refused_with(&mut place.alluvium(&["devices", "--threads", "99999"]), &["99999 threads were asked for"]);
}

#[test]
fn a_path_after_the_flag_for_tokens_is_told_where_it_belongs() {
    let place = Place::new();
    refused_with(&mut place.alluvium(&["generate", "-m", "models/a"]), &["the model's flag is --model"]);
}
