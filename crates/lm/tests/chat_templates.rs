//! Published chat templates render as jinja2 renders them in transformers: `fixtures/chat_templates`, made by
//! `bench/goldens/chat_templates.py`. Another folder like it in `ALLUVIUM_CHAT_TEMPLATES` is compared in its place.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_lm::ChatTemplate;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, thread};

fn folder() -> PathBuf {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/chat_templates");
    std::env::var_os("ALLUVIUM_CHAT_TEMPLATES").map_or(ours, PathBuf::from)
}

fn read(file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder().join(file)).unwrap()).unwrap()
}

/// The time that the goldens were made at.
fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_770_134_709)
}

/// FNV-1a.
fn hash(text: &str) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

/// The variables that transformers gives to a template.
fn context(conversation: &Value) -> Value {
    let mut context = json!({
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "documents": null,
    });
    let variables = conversation.as_object().unwrap().iter().filter(|(key, _)| *key != "name");
    context.as_object_mut().unwrap().extend(variables.map(|(key, value)| (key.clone(), value.clone())));
    context
}

/// The conversations that a template renders otherwise than jinja2 does, with what came.
fn differences(name: &str, want: &Value, conversations: &[Value]) -> Vec<String> {
    let source = fs::read_to_string(folder().join(format!("{name}.jinja"))).unwrap();
    let template = match (ChatTemplate::new(&source), want.is_null()) {
        (Err(_), true) => return vec![],
        (Ok(_), true) => return vec![format!("{name}: it compiles, which jinja2 refuses")],
        (Err(error), false) => return vec![format!("{name}: {error}")],
        (Ok(template), false) => template,
    };
    let want = want.as_array().unwrap();
    assert_eq!(want.len(), conversations.len(), "{name}");
    let mut found = Vec::new();
    for (conversation, want) in conversations.iter().zip(want) {
        let title = conversation["name"].as_str().unwrap();
        let what = match (template.render_at(&context(conversation), now()), want.as_str()) {
            (Err(_), None) => continue,
            (Ok(text), Some(want)) if hash(&text) == want => continue,
            (Ok(text), want) => {
                let shown = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}, {title}.txt"));
                fs::write(&shown, text).unwrap();
                format!("{} {}", if want.is_some() { "another text," } else { "no error," }, shown.display())
            }
            (Err(error), Some(_)) => error.to_string(),
        };
        found.push(format!("{name}, {title}: {what}"));
    }
    found
}

#[test]
fn published_templates_render_as_jinja2_renders_them() {
    let (goldens, conversations) = (read("goldens.json"), read("conversations.json"));
    let goldens: Vec<(&String, &Value)> = goldens.as_object().unwrap().iter().collect();
    let conversations = conversations.as_array().unwrap();
    assert!(conversations.len() >= 16 && goldens.len() >= 40, "{} templates", goldens.len());
    let found: Vec<String> = thread::scope(|scope| {
        let halves = goldens.chunks(goldens.len().div_ceil(4)).map(|part| {
            scope.spawn(move || {
                part.iter().flat_map(|(name, want)| differences(name, want, conversations)).collect::<Vec<_>>()
            })
        });
        halves.collect::<Vec<_>>().into_iter().flat_map(|half| half.join().unwrap()).collect()
    });
    assert!(found.is_empty(), "{} renderings differ:\n{}", found.len(), found.join("\n"));
}

#[test]
fn every_golden_has_its_template_and_every_template_its_golden() {
    let goldens = read("goldens.json");
    let mut files: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".jinja").map(str::to_owned))
        .collect();
    let mut named: Vec<&String> = goldens.as_object().unwrap().keys().collect();
    files.sort();
    named.sort();
    assert_eq!(named, files.iter().collect::<Vec<_>>());
}
