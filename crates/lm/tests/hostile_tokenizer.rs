//! Hostile tokenizers, templates and dtypes beside a model: each is an error that names its file, in bounded time.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{DType, Device};
use alluvium_lm::{Config, Conversation, Loaded, Message, initialize, load, save};
use serde_json::json;
use std::path::Path;

/// Saves the smallest model of its kind.
fn saved(folder: &Path) {
    let sizes = json!({
        "model_type": "qwen3_5",
        "torch_dtype": "bfloat16",
        "text_config": {
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "full_attention_interval": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "linear_num_key_heads": 1,
            "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "vocab_size": 16,
            "tie_word_embeddings": true,
        },
    });
    let config = Config::new(sizes).unwrap();
    save(initialize(&config, 1, &Device::cpu()).unwrap().as_ref(), &config, None, folder).unwrap();
}

#[test]
fn a_template_that_loops_fails_or_is_none_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/llama-f32");
    std::fs::copy(fixture.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let made = |template: Option<&str>| {
        let path = folder.path().join("chat_template.jinja");
        if let Some(text) = template {
            std::fs::write(&path, text).unwrap();
        }
        let tokenizer = alluvium_lm::Tokenizer::load(folder.path()).unwrap();
        Conversation::new([Message::user("hi")]).render(&tokenizer)
    };
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in messages %}{% endfor %}{% endfor %}{% endfor %}";
    for (template, want) in [
        (None, "this model has none; give it the plain prompt"),
        (Some(loops), "chat template: it takes too many steps"),
        (Some("{{ raise_exception('only users') }}"), "only users"),
        (Some("{% for %}"), "chat template: syntax error"),
        (Some("{{ messages[0].content.nothing() }}"), "chat template: "),
        (Some("{% include 'secret' %}"), "chat template: "),
    ] {
        let error = made(template).unwrap_err().to_string();
        assert!(error.contains(want), "{template:?}: {error}");
    }
    assert_eq!(made(Some("{{ messages[0].content }}!")).unwrap(), "hi!");
}

#[test]
fn an_end_token_that_is_no_id_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    let tokenizer = alluvium_lm::Tokenizer::train(["a"].into_iter(), 300, &|_| ()).unwrap();
    tokenizer.save(folder.path()).unwrap();
    for wrong in [json!(-1), json!("</s>"), json!([1, 4294967296u64]), json!([null])] {
        let path = folder.path().join("generation_config.json");
        std::fs::write(path, json!({ "eos_token_id": wrong }).to_string()).unwrap();
        let error = alluvium_lm::Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("generation_config.json: `eos_token_id` is "), "{error}");
        let error = Config::new(json!({ "eos_token_id": wrong })).unwrap().eos_token_ids().unwrap_err().to_string();
        assert!(error.contains("`eos_token_id` is "), "{error}");
    }
}

#[test]
fn a_chat_template_that_cannot_be_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = alluvium_lm::Tokenizer::train(["a"].into_iter(), 300, &|_| ()).unwrap();
    tokenizer.save(folder.path()).unwrap();
    let path = folder.path().join("chat_template.jinja");
    let refused = || {
        let error = alluvium_lm::Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("chat_template.jinja"), "{error}");
    };
    std::fs::write(&path, b"\xff\xfea\0").unwrap();
    refused();
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    refused();
    std::fs::remove_dir(&path).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &path).unwrap();
        refused();
    }
}

#[test]
fn a_saved_config_names_the_dtype_of_the_saved_tensors() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    for (dtype, name) in [(DType::BF16, "bfloat16"), (DType::F16, "float16"), (DType::F32, "float32")] {
        let Loaded { mut model, config, .. } = load(folder.path(), &Device::cpu()).unwrap();
        model.visit_mut("", &mut |_, parameter| *parameter = alluvium_ops::cast(parameter, dtype).unwrap());
        let to = tempfile::tempdir().unwrap();
        save(model.as_ref(), &config, None, to.path()).unwrap();
        let config = Config::read(to.path()).unwrap();
        assert_eq!(config.json()["torch_dtype"], name);
    }
}

#[test]
fn text_that_is_no_utf8_is_decoded_in_linear_time() {
    let tokenizer = alluvium_lm::Tokenizer::train(["a"].into_iter(), 300, &|_| ()).unwrap();
    let emoji = tokenizer.encode("\u{1f980}").unwrap();
    let start = std::time::Instant::now();
    let mut stream = tokenizer.detokenizer();
    let mut text = String::new();
    for _ in 0..20_000 {
        text += &stream.push(emoji[0]).unwrap();
    }
    for &id in &emoji {
        text += &stream.push(id).unwrap();
    }
    text += &stream.finish().unwrap();
    assert_eq!(text.chars().filter(|&c| c == '\u{fffd}').count(), 20_000);
    assert!(text.ends_with('\u{1f980}'));
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}
