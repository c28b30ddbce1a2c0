//! The commands on the checkpoints of `fixtures/models`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, copied, fixture, interrupt, names, refused_with, said, text};
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

#[test]
fn a_plain_prompt_and_a_chat_are_continued_as_mlx_lm_does() {
    let place = Place::new();
    let model = fixture("models/qwen3_5-bf16-q4g64");
    let args =
        ["generate", "--model", &model, "--ignore-chat-template", "-m", "32", "-p", "The gated delta rule writes"];
    let out = said(place.alluvium(&args).args(["--temp", "0"]));
    assert_eq!(out.trim(), "a correction to memory: it reads what the state already predicts for");
    let model = fixture("models/qwen3_next-q4g64");
    let mut child = place
        .alluvium(&["generate", "--model", &model, "--prompt", "-", "-m", "8", "--temp", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(text(&output.stdout).trim(), "reads what the state a");
}

#[test]
fn half_precision_continues_a_prompt_and_measures_a_text_as_f32_does() {
    let place = Place::new();
    let model = fixture("models/qwen3_5-bf16-q4g64");
    let args =
        ["generate", "--model", &model, "--ignore-chat-template", "-m", "32", "-p", "The gated delta rule writes"];
    std::fs::write(place.path("text.txt"), "The gated delta rule writes a correction to memory").unwrap();
    let measure = ["perplexity", "--model", &model, "--data-path", "text.txt", "--json"];
    let loss = |dtype: &str| {
        let out: Value = serde_json::from_str(&said(place.alluvium(&measure).args(["--dtype", dtype]))).unwrap();
        out["nats_per_token"].as_f64().unwrap()
    };
    for dtype in ["bf16", "f16"] {
        let out = said(place.alluvium(&args).args(["--temp", "0", "--dtype", dtype]));
        assert_eq!(out.trim(), "a correction to memory: it reads what the state already predicts for", "{dtype}");
        let (wide, half) = (loss("f32"), loss(dtype));
        assert!(wide != half && (wide - half).abs() < 0.02 * wide, "{half} in {dtype}, {wide} in f32");
    }
    let cache = ["cache_prompt", "--model", &model, "-p", "a prompt", "--prompt-cache-file", "c.safetensors"];
    said(place.alluvium(&cache).args(["--dtype", "bf16"]));
    let after = ["generate", "--model", &model, "-m", "2", "-p", "more", "--prompt-cache-file", "c.safetensors"];
    said(&mut place.alluvium(&after));
}

#[test]
fn activations_in_8_bits_change_a_loss_a_little_and_are_asked_for() {
    let place = Place::new();
    std::fs::write(place.path("text.txt"), "The gated delta rule").unwrap();
    for model in ["models/qwen3_5-bf16-q4g64", "models/qwen3_5-mxfp4"].map(fixture) {
        let loss = |more: &[&str]| {
            let measure = ["perplexity", "--model", &model, "--data-path", "text.txt", "--json"];
            let out: Value = serde_json::from_str(&said(place.alluvium(&measure).args(more))).unwrap();
            out["nats_per_token"].as_f64().unwrap()
        };
        let (exact, eight) = (loss(&[]), loss(&["--activation-bits", "8"]));
        assert!(exact != eight && (exact - eight).abs() < 0.02 * exact, "{model}: {eight} in 8 bits, {exact} exactly");
    }
    let model = fixture("models/qwen3_5-bf16-q4g64");
    let generate = ["generate", "--model", &model, "-p", "The gated", "-m", "4", "--activation-bits", "8"];
    let output = place.alluvium(&generate).args(["--threads", "1"]).output().unwrap();
    assert!(text(&output.stderr).contains("cpu, 1 thread"), "{}", text(&output.stderr));
}

#[test]
fn a_value_that_begins_with_a_dash_is_a_value() {
    let place = Place::new();
    let model = fixture("models/qwen3_next-q4g64");
    for prompt in ["- a list", "-1 + 2 is", "--- a rule", "-1"] {
        let args = ["generate", "--model", &model, "-m", "1", "--stop", "- x", "--stop", "--- y", "-p", prompt];
        said(&mut place.alluvium(&args));
    }
    let flags = ["--system-prompt", "- be brief", "--prefill-response", "--- so", "-m", "1", "-p", "--- hello"];
    said(place.alluvium(&["generate", "--model", &model]).args(flags));
    said(&mut place.alluvium(&["chat", "--model", &model, "--system-prompt", "- be brief"]));
    let cache = ["cache_prompt", "--model", &model, "-p", "- a list", "--prompt-cache-file", "c.safetensors"];
    said(&mut place.alluvium(&cache));
}

#[test]
fn a_value_that_a_flag_does_not_take_is_refused_with_flag_and_value() {
    let place = Place::new();
    let model = fixture("models/llama-f32");
    std::fs::write(place.path("text.txt"), "some text").unwrap();
    let generate = ["generate", "--model", &model, "-p", "a"];
    let perplexity = ["perplexity", "--model", &model, "--data-path", "text.txt"];
    let quantize = ["quantize", "--model", &model, "--mlx-path", "new"];
    for (command, flag, value, words) in [
        (&generate[..], "--temp", "-1", "temperature is -1, expected a finite number, 0 or more"),
        (&generate, "--temp", "hot", "for '--temp <"),
        (&generate, "--top-p", "-0.5", "top_p is -0.5, expected a number above 0"),
        (&generate, "--repetition-penalty", "-2", "the repetition penalty is -2, expected more than 0"),
        (&generate, "--top-k", "-1", "for '--top-k <"),
        (&generate, "--seed", "-1", "for '--seed <"),
        (&generate, "--max-tokens", "-1", "for '--max-tokens <"),
        (&generate, "--max-tokens", "99999999999999999999", "for '--max-tokens <"),
        (&generate, "--prefill-step-size", "0", "for '--prefill-step-size <"),
        (&perplexity, "--sequence-length", "-5", "for '--sequence-length <"),
        (&perplexity, "--num-samples", "x", "for '--num-samples <"),
        (&quantize, "--q-bits", "-4", "for '--q-bits <"),
        (&quantize, "--q-group-size", "-64", "for '--q-group-size <"),
        (&generate, "--dtype", "u8", "expected f32, f16 or bf16"),
        (&generate, "--activation-bits", "4", "expected 8, or no flag for all bits"),
        (&perplexity, "--activation-bits", "4", "expected 8, or no flag for all bits"),
    ] {
        refused_with(place.alluvium(command).args([flag, value]), &[value, words]);
    }
    refused_with(&mut place.train("run", &["--iters", "-5"]), &["'-5' for '--iters"]);
    refused_with(&mut place.train("run", &["--learning-rate", "-1"]), &["learning_rate is -1, expected"]);
    refused_with(&mut place.train("run", &["--dtype", "f16"]), &["f16 cannot be trained in", "use bf16"]);
    let finetune = ["finetune", "--model", &model, "--data", "text.txt", "--dtype", "f16"];
    refused_with(&mut place.alluvium(&finetune), &["f16 cannot be trained in", "use bf16"]);
}

#[test]
fn escapes_in_a_prompt_are_those_of_mlx_lm() {
    let place = Place::new();
    let model = fixture("models/llama-f32");
    let continued = |prompt: &str| {
        let args =
            ["generate", "--model", &model, "--ignore-chat-template", "-m", "4", "--temp", "0", "--json", "-p", prompt];
        let mut out: Value = serde_json::from_str(&said(&mut place.alluvium(&args))).unwrap();
        [out["tokens"].take(), out["prompt_tokens"].take()]
    };
    assert_eq!(continued("a\\n\\tb"), continued("a\n\tb"));
    assert_ne!(continued("a\\n\\tb"), continued("a\\\\n\\\\tb"));
}

#[test]
fn a_prompt_is_read_in_steps_of_the_size_that_is_asked_for() {
    let place = Place::new();
    let prompt = "The gated delta rule writes a correction to memory. ".repeat(60);
    let generate =
        ["generate", "--model", &fixture("models/qwen3_5-f32"), "-m", "8", "--temp", "0", "--json", "-p", &prompt];
    let made = |size: &str| {
        let out = said(place.alluvium(&generate).args(["--prefill-step-size", size]));
        let mut out: Value = serde_json::from_str(&out).unwrap();
        (out["tokens"].take(), out["peak_memory"].as_u64().unwrap())
    };
    let (few, many) = (made("16"), made("2048"));
    assert_eq!(few.0, many.0);
    assert!(2 * few.1 < many.1, "{} B with 16 tokens at once, {} B with 2048", few.1, many.1);
    refused_with(place.alluvium(&generate).args(["--prefill-step-size", "0"]), &["'0' for '--prefill-step-size <N>'"]);
    let chat = ["chat", "--model", &fixture("models/qwen3_5-f32"), "--prefill-step-size", "16"];
    said(&mut place.alluvium(&chat));
}

#[test]
fn several_tokens_may_end_a_completion() {
    let place = Place::new();
    let model = fixture("models/llama-f32");
    let args = ["generate", "--model", &model, "-m", "9", "--temp", "0", "--json", "-p", "hello"];
    let reason = |flags: &[&str]| {
        let out: Value = serde_json::from_str(&said(place.alluvium(&args).args(flags))).unwrap();
        (out["finish_reason"].clone(), out["tokens"].clone())
    };
    let (reason_without, tokens) = reason(&[]);
    assert_eq!(reason_without, "length");
    let known: Value =
        serde_json::from_slice(&std::fs::read(Path::new(&model).join("tokenizer.json")).unwrap()).unwrap();
    let vocabulary = known["model"]["vocab"].as_object().unwrap();
    let (token, _) = vocabulary.iter().find(|(_, id)| **id == tokens[2]).unwrap();
    assert_eq!(reason(&["--extra-eos-token", "<|im_start|>", token]).0, "stop");
    refused_with(
        place.alluvium(&args).args(["--extra-eos-token", "no such"]),
        &["--extra-eos-token: there is no token `no such` in ", "llama-f32/tokenizer.json"],
    );
    refused_with(place.alluvium(&args).args(["--stop", ""]), &["'--stop <TEXT>': expected at least one character"]);
}

#[test]
fn log_probabilities_are_written_as_json() {
    let place = Place::new();
    let args = ["generate", "--model", &fixture("models/llama-f32"), "--json", "--logprobs", "3", "-m", "5", "-p", "T"];
    let out: Value =
        serde_json::from_str(&said(place.alluvium(&args).args(["--ignore-chat-template", "--temp", "0"]))).unwrap();
    assert_eq!(out["tokens"].as_array().unwrap().len(), 5);
    assert_eq!(out["finish_reason"], "length");
    let first = &out["logprobs"][0];
    assert_eq!(first["top_logprobs"].as_array().unwrap().len(), 3);
    assert_eq!(
        (&first["top_logprobs"][0]["token"], &first["top_logprobs"][0]["logprob"]),
        (&out["tokens"][0], &first["logprob"])
    );
}

#[test]
fn a_model_with_nan_weights_is_named_as_the_cause() {
    let place = Place::new();
    let weights = copied(&place, "models/llama-f32").join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[header..].chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&f32::NAN.to_le_bytes()));
    std::fs::write(&weights, bytes).unwrap();
    std::fs::write(place.path("text.txt"), "The gated delta rule writes a correction.").unwrap();
    let why = "weights or activations are not finite; the checkpoint may be broken or badly converted";
    for more in [&[][..], &["--json"]] {
        let measure = ["perplexity", "--model", "model", "--data-path", "text.txt"];
        refused_with(place.alluvium(&measure).args(more), &["error: model: ", "NaN", why]);
        let generate = ["generate", "--model", "model", "-p", "hello"];
        refused_with(
            place.alluvium(&generate).args(more),
            &["error: model: ", why, "generate: the logit of token 0 is NaN at position "],
        );
    }
}

#[test]
fn lines_of_json_are_documents_that_end_and_only_whole_windows_count() {
    let place = Place::new();
    let model = fixture("models/qwen3_5-f32");
    let measured = |file: &str, length: &str, more: &[&str]| {
        let args = ["perplexity", "--model", &model, "--data-path", file, "--json", "--sequence-length", length];
        let out = said(place.alluvium(&args).args(more));
        let out: Value = serde_json::from_str(&out).unwrap();
        [&out["perplexity"], &out["standard_error"], &out["tokens"]].map(|x| x.as_f64().unwrap())
    };
    let documents = [
        "The gated delta rule writes a correction to memory.",
        "It reads what the state already predicts for the key, and then it writes the difference.",
        "A short one.",
    ];
    let lines: Vec<String> =
        documents.iter().map(|text| serde_json::json!({"text": text, "id": 1}).to_string()).collect();
    std::fs::write(place.path("text.jsonl"), lines.join("\n\n")).unwrap();
    // as `mlx_lm.perplexity` computes them with the documents in this order
    for (length, [perplexity, error, tokens]) in [
        ("8", [17.201_997_991, 8.776_764_501, 70.0]),
        ("16", [18.129_938_808, 9.636_320_607, 75.0]),
        ("82", [20.981_795_002, 11.565_368_124, 81.0]),
        ("512", [20.981_795_002, 11.565_368_124, 81.0]),
    ] {
        let found = measured("text.jsonl", length, &[]);
        assert_eq!(found[2], tokens, "{length}");
        assert!((found[0] / perplexity - 1.0).abs() < 1e-4, "{length}: {found:?}");
        assert!((found[1] / error - 1.0).abs() < 1e-3, "{length}: {found:?}");
    }
    assert_eq!(measured("text.jsonl", "8", &["--num-samples", "2"])[2], 14.0);
    std::fs::write(place.path("text.txt"), documents[1]).unwrap();
    let [_, _, all] = measured("text.txt", "512", &[]);
    assert_eq!(measured("text.txt", "8", &[])[2], 7.0 * ((all + 1.0) / 8.0).floor());
}

#[test]
fn lines_that_cannot_be_measured_are_errors_with_file_and_line() {
    let place = Place::new();
    let model = fixture("models/llama-f32");
    let refuse = |name: &str, text: &str, more: &[&str], words: &[&str]| {
        std::fs::write(place.path(name), text).unwrap();
        refused_with(place.alluvium(&["perplexity", "--model", &model, "--data-path", name]).args(more), words);
    };
    let good = "{\"text\": \"a\"}\n";
    for (line, words) in [
        ("{\"text\": hello}", "not valid JSON: expected value at column 10"),
        ("{\"messages\": []}", "only the key `text` is read, the line has `messages`"),
        ("{\"prompt\": \"a\", \"completion\": \"b\"}", "only the key `text` is read, the line has `"),
        ("{\"text\": 5}", "`text` is 5, expected a string"),
        ("[1]", "expected a JSON object with a `text`"),
    ] {
        refuse("a.jsonl", &format!("{good}{line}\n"), &[], &["a.jsonl, line 2: ", words]);
    }
    refuse("a.txt", "", &[], &["a.txt: it has ", " tokens, expected 2 or more"]);
    refuse("a.txt", "some text", &["--sequence-length", "0"], &["--sequence-length is 0, expected 2 or more"]);
    refuse("a.txt", "some text", &["--num-samples", "0"], &["--num-samples is 0, expected 1 or more, or -1 for all"]);
}

#[test]
fn flags_for_a_chat_template_are_refused_without_one() {
    let place = Place::new();
    let template = copied(&place, "models/llama-f32").join("chat_template.jinja");
    let generate = ["generate", "--model", "model", "-p", "hello", "-m", "1"];
    for (flag, value) in
        [("--system-prompt", "be nice"), ("--prefill-response", "so"), ("--chat-template-config", "{}")]
    {
        let flags = [flag, value, "--ignore-chat-template"];
        refused_with(place.alluvium(&generate).args(flags), &[flag, "cannot be used with"]);
        said(place.alluvium(&generate).args(&flags[..2]));
        std::fs::rename(&template, place.path("away")).unwrap();
        let words = format!("{flag} needs a chat template, model has none; leave the flag out");
        refused_with(place.alluvium(&generate).args(&flags[..2]), &[&words]);
        std::fs::rename(place.path("away"), &template).unwrap();
    }
}

#[test]
fn a_template_that_fails_is_named() {
    let place = Place::new();
    let model = copied(&place, "models/llama-f32");
    let generate = ["generate", "--model", "model", "-p", "hello", "-m", "1"];
    let raises = "{{ raise_exception('not today') }}";
    std::fs::write(model.join("chat_template.jinja"), raises).unwrap();
    refused_with(&mut place.alluvium(&generate), &["not today (in chat_template.jinja:1)"]);
    std::fs::remove_file(model.join("chat_template.jinja")).unwrap();
    std::fs::write(model.join("tokenizer_config.json"), serde_json::json!({"chat_template": raises}).to_string())
        .unwrap();
    refused_with(&mut place.alluvium(&generate), &["not today (in chat_template of tokenizer_config.json:1)"]);
}

#[test]
fn chat_without_a_template_points_to_generate() {
    let place = Place::new();
    std::fs::remove_file(copied(&place, "models/llama-f32").join("chat_template.jinja")).unwrap();
    let words = ["model has no chat template", "`alluvium generate` continues plain text"];
    refused_with(&mut place.alluvium(&["chat", "--model", "model"]), &words);
}

#[test]
fn a_model_is_converted_quantized_described_and_measured() {
    let place = Place::new();
    let (hf, golden) = (fixture("models/qwen3_5-f32-hf"), fixture("models/qwen3_5-q4g64"));
    let out = said(&mut place.alluvium(&["convert", "--hf-path", &hf, "--mlx-path", "new", "-q", "--q-bits", "4"]));
    assert!(out.starts_with("new: ") && out.contains("5.583 bits per weight"), "{out}");
    refused_with(&mut place.alluvium(&["convert", "--hf-path", &hf, "--mlx-path", "new"]), &["new: it exists already"]);
    said(&mut place.alluvium(&["quantize", "--model", &hf, "--mlx-path", "other", "--q-layer", "lm_head=8:32"]));
    let info = said(&mut place.alluvium(&["info", "other"]));
    assert!(
        info.contains("modules, 4 bits in groups of 64") && info.contains("1 modules, 8 bits in groups of 32"),
        "{info}"
    );
    std::fs::write(place.path("text.txt"), "The gated delta rule writes a correction to memory: it reads.").unwrap();
    let measured = |model: &str| {
        let out = said(&mut place.alluvium(&["perplexity", "--model", model, "--data-path", "text.txt", "--json"]));
        serde_json::from_str::<Value>(&out).unwrap()["perplexity"].as_f64().unwrap()
    };
    assert_eq!(measured("new"), measured(&golden));
    assert!(measured("new") < 10.0);
    said(&mut place.alluvium(&["convert", "--model", "new", "--mlx-path", "plain", "-d", "--dtype", "bfloat16"]));
    assert!(said(&mut place.alluvium(&["info", "plain"])).contains("BF16"));
}

/// A small model with a quarter of a gigabyte of words, all zeros, which take no room on the disk.
#[cfg(unix)]
fn long_to_convert(place: &Place) {
    const WORDS: usize = 1 << 19;
    let model = copied(place, "models/llama-f32");
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let config = config.replace("\"vocab_size\": 384", &format!("\"vocab_size\": {WORDS}"));
    std::fs::write(model.join("config.json"), config).unwrap();
    let path = model.join("model.safetensors");
    let old = std::fs::read(&path).unwrap();
    let data = 8 + u64::from_le_bytes(old[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&old[8..data]).unwrap();
    let mut at = 0;
    for (name, entry) in header.as_object_mut().unwrap().iter_mut().filter(|(name, _)| *name != "__metadata__") {
        if name.ends_with("embed_tokens.weight") {
            entry["shape"][0] = WORDS.into();
        }
        let size = entry["shape"].as_array().unwrap().iter().fold(4, |n, d| n * d.as_u64().unwrap() as usize);
        entry["data_offsets"] = serde_json::json!([at, at + size]);
        at += size;
    }
    let header = header.to_string();
    let file = std::fs::File::create(&path).unwrap();
    (&file).write_all(&[&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    file.set_len((8 + header.len() + at) as u64).unwrap();
}

#[cfg(unix)]
#[test]
fn info_devices_convert_and_quantize_answer_in_json() {
    let place = Place::new();
    let parse = |args: &[&str]| serde_json::from_str::<Value>(&said(&mut place.alluvium(args))).unwrap();
    let hf = fixture("models/qwen3_5-f32-hf");
    let quantized = parse(&["quantize", "--model", &hf, "--dtype", "bfloat16", "--json"]);
    assert_eq!((&quantized["path"], &quantized["quantized_before"]), (&"mlx_model".into(), &0.into()));
    assert!(quantized["quantized_modules"].as_u64().unwrap() > 10, "{quantized}");
    let info = parse(&["info", "mlx_model", "--json"]);
    assert_eq!(info["model_type"], "qwen3_5");
    assert!(info["dtypes"].as_array().unwrap().iter().any(|entry| entry["dtype"] == "BF16"), "{info}");
    let tensors = parse(&["info", "mlx_model", "--json", "--tensors"]);
    assert_eq!(tensors["tensors"].as_array().unwrap().len() as u64, info["tensors"].as_u64().unwrap());
    let converted = parse(&["convert", "--hf-path", &hf, "--mlx-path", "plain", "--json"]);
    assert_eq!((&converted["bits_per_weight"], &converted["quantized_modules"]), (&32.0.into(), &0.into()));
    assert_eq!(parse(&["devices", "--json"])[0]["device"], "cpu");
}

#[test]
fn a_conversion_that_is_interrupted_leaves_nothing() {
    let place = Place::new();
    long_to_convert(&place);
    let before = names(&place.path(""));
    for command in [
        &["convert", "--hf-path", "model", "--mlx-path", "new", "-q"][..],
        &["quantize", "--model", "model", "--mlx-path", "new"],
    ] {
        let mut child = place.alluvium(command).stderr(Stdio::piped()).spawn().unwrap();
        while names(&place.path("")) == before {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
            std::thread::sleep(Duration::from_millis(2));
        }
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{errors}");
        assert!(errors.contains("stopped; the partial output is removed"), "{errors}");
        assert!(!errors.contains("error: "), "{errors}");
        assert_eq!(names(&place.path("")), before);
    }
}

#[test]
fn conversions_that_are_impossible_are_errors() {
    let place = Place::new();
    let model = fixture("models/llama-f32");
    let convert = |flags: &[&str], words: &[&str]| {
        refused_with(place.alluvium(&["convert", "--model", &model, "--mlx-path", "new"]).args(flags), words);
        assert!(!place.path("new").exists());
    };
    for flags in [["--q-bits", "4"], ["--q-group-size", "32"], ["--q-mode", "mxfp4"], ["--q-layer", "lm_head=8"]] {
        convert(&flags, &["the --q-* and --quant-predicate flags need -q; add it"]);
    }
    convert(&["-q", "--q-bits", "7"], &["--q-bits 7: 7 bits, expected 1, 2, 3, 4, 5, 6 or 8"]);
    convert(&["-q", "--q-group-size", "0"], &["--q-group-size 0: groups of 0, expected 32, 64 or 128"]);
    convert(&["-q", "--q-mode", "int4"], &["--q-mode int4: mode `int4` is not known; known are affine, mxfp4"]);
    convert(&["-q", "--q-mode", "mxfp4", "--q-bits", "8"], &["mxfp4 has 4 bits in groups of 32"]);
    convert(
        &["-q", "--quant-predicate", "mixed_9_9"],
        &["--quant-predicate: there is no recipe `mixed_9_9`; there are mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6"],
    );
    convert(&["-q", "--q-layer", "nothing=8"], &["no module has `nothing` in its name"]);
    for layer in ["=8", "lm_head=", "lm_head"] {
        convert(&["-q", "--q-layer", layer], &[&format!("--q-layer {layer}: expected PART=BITS")]);
    }
    convert(&["-q", "-d"], &["--quantize", "cannot be used with"]);
    refused_with(&mut place.alluvium(&["chat", "--model", "nowhere"]), &["nowhere"]);
}

#[test]
fn a_missing_path_is_named_with_what_to_do() {
    let place = Place::new();
    let repository = "mlx-community/Llama-3.2-3B";
    let words = [repository, "there is no such folder, the cache ", "HF_HUB_OFFLINE is set, so nothing is downloaded"];
    std::fs::write(place.path("text.txt"), "some text").unwrap();
    for args in [
        &["convert", "--hf-path", repository][..],
        &["quantize", "--mlx-path", "new", "--model", repository],
        &["generate", "-p", "a", "--model", repository],
        &["chat", "--model", repository],
        &["perplexity", "--data-path", "text.txt", "--model", repository],
        &["cache_prompt", "-p", "a", "--prompt-cache-file", "c.safetensors", "--model", repository],
    ] {
        refused_with(&mut place.alluvium(args), &words);
    }
    // what is there is not taken for a repository
    refused_with(&mut place.alluvium(&["chat", "--model", "text/a.txt"]), &["text/a.txt"]);
    let model = fixture("models/llama-f32");
    let cache = ["cache_prompt", "--model", &model, "-p", "a", "--prompt-cache-file", "no/folder/c.safetensors"];
    let words = ["--prompt-cache-file no/folder/c.safetensors: there is no folder no/folder; make it first"];
    refused_with(&mut place.alluvium(&cache), &words);
}
