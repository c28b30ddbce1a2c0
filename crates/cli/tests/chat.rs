//! `chat`, `cache_prompt` and chat templates, on the checkpoints of `fixtures/models`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, copied, fixture, refused_with, said, text};
use serde_json::Value;
use std::io::Write;
use std::process::Stdio;

#[test]
fn generation_continues_from_a_cached_prompt() {
    let place = Place::new();
    let model = fixture("models/qwen3_5-f32");
    let out = said(&mut place.alluvium(&[
        "cache_prompt",
        "--model",
        &model,
        "-p",
        "The gated delta rule",
        "--prompt-cache-file",
        "c.safetensors",
    ]));
    assert!(out.starts_with("c.safetensors: 16 tokens"), "{out}");
    for cache in ["c.safetensors", &fixture("cli/prompt_cache.safetensors")] {
        let args =
            ["generate", "--model", &model, "--prompt-cache-file", cache, "-p", " writes", "-m", "8", "--temp", "0"];
        assert_eq!(said(&mut place.alluvium(&args)).trim(), "state @ k) * b");
    }
}

#[test]
fn a_system_prompt_belongs_into_the_prompt_cache_and_not_behind_it() {
    let place = Place::new();
    let model = fixture("models/qwen3_5-f32");
    let cache = ["cache_prompt", "--model", &model, "--prompt-cache-file", "c.safetensors", "-p", "The gated"];
    let plain = said(&mut place.alluvium(&cache));
    let more = said(place.alluvium(&cache).args(["--system-prompt", "Be brief.", "--prefill-step-size", "4"]));
    let tokens = |out: &str| out.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
    assert!(tokens(&more) > tokens(&plain) + 4, "{plain} {more}");
    let raw = said(place.alluvium(&cache).arg("--ignore-chat-template"));
    assert!(tokens(&raw) < tokens(&plain), "{plain} {raw}");
    for command in ["generate", "chat"] {
        let flags = ["--model", &model, "--prompt-cache-file", "c.safetensors", "--system-prompt", "Be brief."];
        let words = "--system-prompt: c.safetensors holds the beginning of the conversation";
        refused_with(place.alluvium(&[command]).args(flags), &[words, "`alluvium cache_prompt`"]);
    }
}

#[test]
fn a_cached_prompt_keeps_the_space_at_its_end_where_the_template_does() {
    let place = Place::new();
    copied(&place, "models/qwen3_5-f32");
    let tokens = |prompt: &str| {
        let cache = ["cache_prompt", "--model", "model", "--prompt-cache-file", "c.safetensors", "-p", prompt];
        said(&mut place.alluvium(&cache))
    };
    // as transformers counts them with `continue_final_message`
    assert!(tokens("hello there").contains(": 10 tokens"), "{}", tokens("hello there"));
    assert!(tokens("hello there ").contains(": 11 tokens"), "{}", tokens("hello there "));
    let template = place.path("model/chat_template.jinja");
    let trims = std::fs::read_to_string(&template).unwrap().replace("content", "content | trim");
    std::fs::write(&template, trims).unwrap();
    assert!(tokens("hello there ").contains(": 10 tokens"), "{}", tokens("hello there "));
}

#[test]
fn a_chat_follows_a_prompt_cache_and_answers_in_json() {
    let place = Place::new();
    let model = fixture("models/qwen3_5-f32");
    let cache =
        ["cache_prompt", "--model", &model, "--prompt-cache-file", "c.safetensors", "-p", "The gated delta rule"];
    said(&mut place.alluvium(&cache));
    let chat = ["chat", "--model", &model, "--prompt-cache-file", "c.safetensors", "-m", "8", "--temp", "0", "--json"];
    let mut command = place.alluvium(&chat);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"writes\nmore\n/reset\nwrites\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    let generate =
        ["generate", "--model", &model, "--prompt-cache-file", "c.safetensors", "-m", "8", "--temp", "0", "--json"];
    let alone: Value = serde_json::from_str(&said(place.alluvium(&generate).args(["-p", "writes"]))).unwrap();
    assert_eq!((&lines[0]["tokens"], &lines[0]["text"]), (&alone["tokens"], &alone["text"]));
    assert_eq!((&lines[0]["finish_reason"], &lines[0]["reused_tokens"]), (&"length".into(), &0.into()));
    assert!(lines[1]["reused_tokens"].as_u64().unwrap() > 8, "{}", lines[1]);
    assert_eq!(lines[2]["tokens"], lines[0]["tokens"]);
    refused_with(
        place.alluvium(&chat).args(["--extra-eos-token", "no such"]),
        &["--extra-eos-token: there is no token `no such`"],
    );
}

#[test]
fn a_chat_answers_resets_and_ends() {
    let place = Place::new();
    let mut child = place
        .alluvium(&["chat", "--model", &fixture("models/qwen3_next-q4g64"), "-m", "8", "--temp", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello\nhello\n/reset\nhello\n/nothing\n/exit\nhello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{errors}");
    let answers: Vec<&str> = out.lines().collect();
    assert_eq!(answers.len(), 3, "{out}");
    assert_eq!(answers[0], answers[2], "after /reset the same is answered: {out}");
    assert!(errors.contains("unknown command /nothing\n/help "), "{errors}");
    assert!(errors.contains("the conversation is cleared"), "{errors}");
}

#[test]
fn a_chat_survives_what_it_cannot_answer() {
    let place = Place::new();
    let model = copied(&place, "models/qwen3_next-q4g64");
    let template = std::fs::read_to_string(model.join("chat_template.jinja")).unwrap();
    let raises = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}\
                  {% if m.content == 'boo' %}{{ raise_exception('no boo here') }}{% endif %}{% endfor %}";
    std::fs::write(model.join("chat_template.jinja"), format!("{raises}{template}")).unwrap();
    let mut chat = place.alluvium(&["chat", "--model", "model", "-m", "8", "--temp", "0"]);
    let mut child = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let said = b"hello\nboo\ncaf\xe9\n/system be nice\n/help\n/etc/passwd is what?\n/reset\nhello\n";
    child.stdin.take().unwrap().write_all(said).unwrap();
    let output = child.wait_with_output().unwrap();
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{errors}");
    for words in [
        "no boo here (in chat_template.jinja:1)",
        "; the message was left out",
        "this line is not UTF-8; it was left out",
        "no system here",
        "the system prompt is unchanged",
        "/save FILE      writes the conversation as JSON",
    ] {
        assert!(errors.contains(words), "{words} in {errors}");
    }
    let answers: Vec<&str> = out.lines().collect();
    assert_eq!(answers.len(), 3, "{out}");
    assert_eq!(answers[0], answers[2], "{out}");
}
