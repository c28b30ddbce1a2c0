//! Fine-tuning from files: data, masks, packing, adapters, resumed runs, and input that is wrong.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{Device, Tensor};
use alluvium_lm::adapter::Adapter;
use alluvium_lm::formats::safetensors;
use alluvium_lm::{LanguageModel, Tokenizer, load};
use alluvium_train::data::{LongSamples, PackedBatch, Sample, Samples, Targets, read_samples};
use alluvium_train::finetune::{Finetune, FinetuneSettings, Start, test};
use alluvium_train::{Event, NextToken, Objective, RunStatus, gradients};
use serde_json::{Map, Value, json};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

fn settings(folder: &Path, model: &str, more: Value) -> FinetuneSettings {
    let mut keys: Map<String, Value> = serde_json::from_value(json!({
        "model": fixture(model), "data": fixture("train/lora-data"), "adapter_path": folder.join("adapters"),
        "train": true, "iters": 6, "batch_size": 2, "num_layers": 2, "learning_rate": 5e-3, "save_every": 2,
        "steps_per_report": 1, "steps_per_eval": 3, "lora_parameters": {"rank": 4, "scale": 10.0},
    }))
    .unwrap();
    keys.extend(serde_json::from_value::<Map<String, Value>>(more).unwrap());
    FinetuneSettings::from_keys(keys).unwrap()
}

fn prepare(settings: FinetuneSettings, start: Start) -> Result<Finetune, String> {
    Finetune::prepare(settings, start, &Device::cpu(), &mut |_| CONTINUE).map_err(|error| error.to_string())
}

fn adapter(folder: &Path, name: &str) -> Vec<(String, Vec<f32>)> {
    let file = safetensors::read(folder.join("adapters").join(name)).unwrap();
    let values = |name: &str| file.tensor(name, &Device::cpu()).unwrap().to_floats().unwrap();
    file.names().map(|name| (name.to_owned(), values(name))).collect()
}

#[test]
fn a_run_learns_and_its_adapter_gives_the_same_loss_when_it_is_loaded() {
    for (model, more) in [
        ("models/qwen3_5-bf16-q4g64", json!({})),
        ("models/qwen3_5-bf16", json!({"fine_tune_type": "dora"})),
        ("models/qwen3_5-f32", json!({"fine_tune_type": "full", "learning_rate": 1e-3})),
        ("models/qwen3_next-mxfp4", json!({"grad_checkpoint": true})),
        ("models/llama-q4g64", json!({"optimizer": "adamw", "grad_accumulation_steps": 2})),
        ("models/qwen3-f32", json!({"lora_parameters": {"rank": 2, "scale": 4.0, "keys": ["lm_head", "mlp.up_proj"]}})),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), model, more);
        let mut run = prepare(settings.clone(), Start::Begin).unwrap();
        let before = run.test_loss(&mut |_| CONTINUE).unwrap();
        assert_eq!(run.trainer.run(&mut |_| CONTINUE).unwrap(), RunStatus::Finished);
        let after = run.test_loss(&mut |_| CONTINUE).unwrap();
        assert!(after < before - 0.05, "{model}: {before} became {after}");
        let loaded = test(&settings, &Device::cpu(), &mut |_| CONTINUE).unwrap();
        assert!((loaded - after).abs() < 1e-5, "{model}: {loaded}, expected {after}");
    }
}

#[test]
fn a_stopped_run_resumes_bit_for_bit() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let of = |folder: &Path| settings(folder, "models/qwen3_5-q4g64", json!({"fine_tune_type": "dora"}));
    prepare(of(whole.path()), Start::Begin).unwrap().trainer.run(&mut |_| CONTINUE).unwrap();
    let mut first = prepare(of(parts.path()), Start::Begin).unwrap();
    let stop = &mut |event: Event<'_>| match event {
        Event::Stepped { step: 3, .. } => ControlFlow::Break(()),
        _ => CONTINUE,
    };
    assert_eq!(first.trainer.run(stop).unwrap(), RunStatus::Stopped);
    drop(first);
    let error = prepare(of(parts.path()), Start::Begin).unwrap_err();
    assert!(error.contains("--resume continues a run"), "{error}");
    let mut other = of(parts.path());
    other.learning_rate = 1e-4;
    let error = prepare(other, Start::Resume).unwrap_err();
    assert!(error.contains("another learning_rate: it was 0.005, now 0.0001"), "{error}");
    prepare(of(parts.path()), Start::Resume).unwrap().trainer.run(&mut |_| CONTINUE).unwrap();
    for name in ["adapters.safetensors", "0000006_adapters.safetensors", "best_adapters.safetensors"] {
        assert_eq!(adapter(whole.path(), name), adapter(parts.path(), name), "{name}");
    }
    assert_ne!(adapter(whole.path(), "adapters.safetensors"), adapter(whole.path(), "0000002_adapters.safetensors"));
}

#[test]
fn dropout_is_resumed_and_recomputed_bit_for_bit_and_validation_has_none() {
    let with = |folder: &Path, dropout: f32, more: Value| {
        let mut keys = json!({
            "seed": 3, "grad_accumulation_steps": 2,
            "lora_parameters": {"rank": 4, "scale": 10.0, "dropout": dropout},
        });
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        settings(folder, "models/qwen3_5-bf16-q4g64", keys)
    };
    let folders = [(); 4].map(|()| tempfile::tempdir().unwrap());
    let [whole, parts, again, none] = folders.each_ref().map(|folder| folder.path());
    let finished = |settings| {
        let mut run = prepare(settings, Start::Begin).unwrap();
        run.run(&mut |_| CONTINUE).unwrap();
        let first = run.trainer.metrics().iter().find_map(|row| row.val_loss).unwrap();
        (first, run.test_loss(&mut |_| CONTINUE).unwrap())
    };
    let dropped = finished(with(whole, 0.3, json!({})));
    let kept = finished(with(none, 0.0, json!({})));
    assert!(dropped.0 == kept.0 && dropped.1 != kept.1, "{dropped:?} {kept:?}");
    assert_eq!(finished(with(again, 0.3, json!({"grad_checkpoint": true}))), dropped);
    let mut run = prepare(with(parts, 0.3, json!({})), Start::Begin).unwrap();
    let mut steps = 0;
    let stop = &mut |event: Event<'_>| {
        steps += usize::from(matches!(event, Event::Stepped { .. }));
        if steps == 1 { ControlFlow::Break(()) } else { CONTINUE }
    };
    assert_eq!(run.run(stop).unwrap(), RunStatus::Stopped);
    drop(run);
    prepare(with(parts, 0.3, json!({})), Start::Resume).unwrap().run(&mut |_| CONTINUE).unwrap();
    for folder in [parts, again] {
        assert_eq!(adapter(whole, "adapters.safetensors"), adapter(folder, "adapters.safetensors"));
    }
    assert_ne!(adapter(whole, "adapters.safetensors"), adapter(none, "adapters.safetensors"));
}

#[test]
fn a_sample_of_nan_leaves_the_loss_of_its_neighbors() {
    const NAN: u32 = 7;
    let device = Device::cpu();
    for name in ["models/qwen3_5-f32", "models/qwen3_next-f32", "models/qwen3-f32"] {
        let mut model = load(&fixture(name), &device).unwrap().model;
        let sample = |tokens: &[u32], answers: bool| {
            let all = 0..tokens.len();
            Sample { tokens: tokens.to_vec(), answers: if answers { vec![all] } else { Vec::new() } }
        };
        let around =
            [sample(&[1, 2, 3, 4, 5, 6], true), sample(&[3, NAN, 9, NAN, 2], false), sample(&[9, 8, 5, 4], true)];
        let batch = Samples { samples: around.into(), ..Samples::default() }.batches(3, 1);
        let loss = |model: &(dyn LanguageModel + 'static)| {
            NextToken::new(&device).loss(model, &batch[0]).unwrap().item().unwrap()
        };
        let before = loss(model.as_ref());
        model.visit_mut("", &mut |name, tensor| {
            if name.ends_with("embed_tokens.weight") {
                let mut rows = tensor.to_floats().unwrap();
                let width = tensor.shape()[1];
                rows[NAN as usize * width..][..width].fill(f32::NAN);
                *tensor = Tensor::from_slice(&rows, tensor.shape(), &device).unwrap();
            }
        });
        assert_eq!(loss(model.as_ref()), before, "{name}");
    }
}

fn lines(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("train.jsonl");
    fs::write(&path, text).unwrap();
    path
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(fixture("models/qwen3_5-f32")).unwrap()
}

fn read(text: &str, targets: Targets) -> Result<Vec<Sample>, String> {
    let folder = tempfile::tempdir().unwrap();
    read_samples(&lines(folder.path(), text), &tokenizer(), targets).map_err(|error| error.to_string())
}

#[test]
fn all_forms_of_one_conversation_give_the_same_sample() {
    let turns = [("user", "add one to two"), ("assistant", "three")];
    let messages: Vec<Value> = turns.iter().map(|(role, text)| json!({"role": role, "content": text})).collect();
    let forms = [
        json!({"messages": messages}),
        json!({"prompt": turns[0].1, "completion": turns[1].1}),
        json!({"prompt": [messages[0]], "completion": [messages[1]]}),
        json!({"instruction": "add one to two", "input": "", "output": "three"}),
        json!({"conversations": [{"from": "human", "value": turns[0].1}, {"from": "gpt", "value": turns[1].1}]}),
    ];
    let text: Vec<String> = forms.iter().map(Value::to_string).collect();
    for targets in [Targets::All, Targets::Answers] {
        let samples = read(&text.join("\n\n"), targets).unwrap();
        assert_eq!(samples.len(), forms.len());
        assert!(samples.iter().all(|sample| *sample == samples[0]), "{samples:?}");
    }
    let with_input = json!({"instruction": "add", "input": "one", "output": "three", "system": "Be brief."});
    let decoded = tokenizer().decode(&read(&with_input.to_string(), Targets::All).unwrap()[0].tokens).unwrap();
    assert!(decoded.contains("add\n\none") && decoded.contains("Be brief."), "{decoded}");
}

#[test]
fn every_turn_of_the_assistant_counts_and_nothing_else() {
    let text = |role: &str, text: &str| json!({"role": role, "content": text});
    let line = json!({"messages": [
        text("system", "Be brief."), text("user", "add one to two"), text("assistant", "three"),
        text("user", "and one more"), text("assistant", "four"),
    ]});
    let sample = &read(&line.to_string(), Targets::Answers).unwrap()[0];
    let decoded = |range: &std::ops::Range<usize>| tokenizer().decode(&sample.tokens[range.clone()]).unwrap();
    let answers: Vec<String> = sample.answers.iter().map(decoded).collect();
    assert_eq!(answers.len(), 2);
    assert!(answers[0].contains("three") && answers[1].contains("four"), "{answers:?}");
    assert!(answers.iter().all(|text| !text.contains("one") && !text.contains("brief")), "{answers:?}");
    // the token that ends a turn is learned, or the model would not stop
    let ends = tokenizer().eos_token_ids().to_vec();
    for answer in &sample.answers {
        assert!(sample.tokens[answer.clone()].iter().any(|token| ends.contains(token)), "{answers:?}");
    }
}

#[test]
fn a_wrong_line_is_named_by_file_and_number() {
    let good = r#"{"text": "a"}"#;
    for (line, why) in [
        ("{\"text\": ", "line 3: not valid JSON"),
        ("[1]", "line 3: expected a JSON object"),
        ("{\"question\": \"a\"}", "line 3: the line has `question`; expected `messages`"),
        ("{\"text\": 3}", "line 3: `text` is 3, expected a string"),
        ("{\"messages\": [{\"content\": \"a\"}]}", "line 3: `messages`: missing field `role`"),
        ("{\"messages\": []}", "line 3: it has no message"),
        ("{\"conversations\": [{\"from\": \"cat\", \"value\": \"a\"}]}", "line 3: `from` is `cat`"),
        ("{\"prompt\": 1, \"completion\": \"a\"}", "line 3: `prompt` is 1"),
    ] {
        let error = read(&format!("{good}\n\n{line}\n"), Targets::All).unwrap_err();
        assert!(error.contains("train.jsonl") && error.contains(why), "{error}");
    }
    let error = read(good, Targets::Answers).unwrap_err();
    assert!(error.contains("line 1") && error.contains("--mask-prompt"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latin.jsonl");
    fs::write(&path, [good.as_bytes(), b"\n{\"text\": \"caf\xe9\"}\n"].concat()).unwrap();
    let error = read_samples(&path, &tokenizer(), Targets::All).unwrap_err().to_string();
    assert!(error.contains("latin.jsonl: line 2: not valid UTF-8"), "{error}");
}

/// The loss and the gradients of a batch.
fn of_batch(model: &mut (dyn LanguageModel + 'static), batch: &PackedBatch) -> (f32, Vec<(String, Vec<f32>)>) {
    let objective = NextToken::new(&Device::cpu());
    let all = gradients(model, &objective, std::slice::from_ref(batch)).unwrap();
    let named = all.by_name.into_iter().map(|(name, gradient)| (name, gradient.to_vec::<f32>().unwrap()));
    (all.loss.item().unwrap(), named.collect())
}

/// Neighbors with other tokens, and one whose embedding is a million times larger: the sample's loss and gradients are
/// those that it has alone.
#[test]
fn a_sample_sees_nothing_of_its_neighbors_in_a_batch() {
    for model in ["models/qwen3_5-f32", "models/qwen3_next-f32", "models/llama-f32"] {
        let mut model = load(&fixture(model), &Device::cpu()).unwrap().model;
        let poisoned = 300;
        model.visit_mut("", &mut |name, tensor| {
            if name.ends_with("embed_tokens.weight") {
                let mut rows = tensor.to_vec::<f32>().unwrap();
                let width = tensor.shape().last();
                rows[poisoned * width..(poisoned + 1) * width].iter_mut().for_each(|x| *x *= 1e6);
                *tensor = Tensor::from_slice(&rows, tensor.shape(), tensor.device()).unwrap();
            }
        });
        alluvium_lm::freeze(model.as_mut(), &|name| !name.contains("proj"));
        let own: Vec<u32> = (0..70).map(|i| i * 7 % 250).collect();
        let alone = of_batch(model.as_mut(), &PackedBatch::next_token(&own));
        for neighbor in [vec![poisoned as u32; 9], (0..130).map(|i| i % 211).collect()] {
            let (mut between, none) = (PackedBatch::default(), vec![u32::MAX; neighbor.len()]);
            between.push(&neighbor, &none);
            between.push(&own[..69], &own[1..]);
            between.push(&neighbor, &none);
            let (loss, all) = of_batch(model.as_mut(), &between);
            assert!((loss - alone.0).abs() < 1e-5 * loss, "{loss}, expected {}", alone.0);
            for ((name, got), (_, want)) in all.iter().zip(&alone.1) {
                let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                let gap = norm(&mut got.iter().zip(want).map(|(a, b)| a - b));
                assert!(gap <= 1e-4 * norm(&mut want.iter().copied()) + 1e-12, "{name}: {gap}");
            }
        }
        // without the offsets the neighbors change the loss
        let mut leaking = PackedBatch::default();
        leaking.push(&[poisoned as u32; 9], &[u32::MAX; 9]);
        leaking.push(&own[..69], &own[1..]);
        leaking.offsets = vec![0, leaking.inputs.len() as u32];
        assert!((of_batch(model.as_mut(), &leaking).0 - alone.0).abs() > 1e-3);
    }
}

/// A head that is quantized, and the same one made plain.
#[test]
fn the_loss_over_a_quantized_head_is_that_over_its_plain_copy() {
    use alluvium_lm::adapter::{Fuse, fuse};
    let mut packed = load(&fixture("models/qwen3_5-q4g64"), &Device::cpu()).unwrap().model;
    let mut plain = load(&fixture("models/qwen3_5-q4g64"), &Device::cpu()).unwrap().model;
    fuse(plain.as_mut(), Fuse::Dequantize).unwrap();
    for model in [&mut packed, &mut plain] {
        alluvium_lm::freeze(model.as_mut(), &|name| !name.ends_with("layernorm.weight"));
    }
    // more rows than a chunk of logits, some without a target
    let own: Vec<u32> = (0..90).map(|i| i * 7 % 250).collect();
    let mut batch = PackedBatch::next_token(&own);
    batch.targets[..20].fill(u32::MAX);
    let (a, b) = (of_batch(packed.as_mut(), &batch), of_batch(plain.as_mut(), &batch));
    assert!((a.0 - b.0).abs() < 1e-5, "{} {}", a.0, b.0);
    assert!(!a.1.is_empty());
    for ((name, a), (_, b)) in a.1.iter().zip(&b.1) {
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let gap = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
        assert!(gap <= 1e-4 * norm(&mut b.iter().copied()), "{name}: {gap}");
    }
}

#[test]
fn input_that_is_wrong_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let refused = |more: Value| {
        let error = prepare(settings(folder.path(), "models/qwen3-f32", more), Start::Begin).unwrap_err();
        assert!(!folder.path().join("adapters").exists(), "{error}");
        error
    };
    let error = refused(json!({"data": data.path()}));
    assert!(error.contains("train.jsonl: there is no training data"), "{error}");
    lines(data.path(), "\n");
    assert!(refused(json!({"data": data.path()})).contains("it has no samples"));
    lines(data.path(), r#"{"messages": [{"role": "user", "content": "a"}]}"#);
    let error = refused(json!({"data": data.path(), "mask_prompt": true}));
    assert!(error.contains("none of its 1 samples has a token that counts in the loss"), "{error}");
    let error = refused(json!({"lora_parameters": {"rank": 4096, "scale": 1.0}}));
    assert!(error.contains("the rank is 4096, expected at most"), "{error}");
    let error = refused(json!({"num_layers": 9}));
    assert!(error.contains("num_layers is 9"), "{error}");
    let other = fixture("train/lora-qwen3_next-f32/adapters.safetensors");
    let error = refused(json!({"resume_adapter_file": other, "num_layers": -1}));
    assert!(error.contains("adapters.safetensors"), "{error}");
    let error = refused(json!({"model": fixture("models/qwen3_5-q4g64"), "fine_tune_type": "full", "test": true,
                               "data": data.path()}));
    assert!(error.contains("there is no test data"), "{error}");
}

#[test]
fn a_loss_that_is_not_finite_ends_the_run_and_the_last_checkpoint_stays() {
    let folder = tempfile::tempdir().unwrap();
    let more = json!({"learning_rate": 1e30, "save_every": 1, "optimizer": "sgd"});
    let mut run = prepare(settings(folder.path(), "models/qwen3-f32", more), Start::Begin).unwrap();
    let error = run.trainer.run(&mut |_| CONTINUE).unwrap_err().to_string();
    assert!(error.contains("not finite") || error.contains("the loss is"), "{error}");
    if folder.path().join("adapters/adapters.safetensors").exists() {
        let saved = Adapter::read(&folder.path().join("adapters"), &Device::cpu()).unwrap();
        assert!(saved.tensors().all(|(_, tensor)| tensor.to_floats().unwrap().iter().all(|x| x.is_finite())));
    }
}

#[test]
fn configurations_of_mlx_lm_are_read_as_yaml_and_as_toml() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = folder.path().join("lora.yaml");
    let text = "model: \"m\"\ntrain: true\nfine_tune_type: dora\noptimizer: adamw\noptimizer_config:\n  adamw:\n    \
                betas: [0.9, 0.98]\n    bias_correction: true\n  adam: {}\ndata: d\nlearning_rate: 1e-4\nreport_to: null\n\
                lora_parameters:\n  keys: [\"self_attn.q_proj\"]\n  rank: 8\n  scale: 20.0\n  dropout: 0.0\n\
                lr_schedule:\n  name: cosine_decay\n  warmup: 100\n  warmup_init: 1e-7\n  arguments: [1e-5, 1000, 1e-7]\n\
                hf_dataset:\n";
    fs::write(&yaml, text).unwrap();
    let settings = FinetuneSettings::from_keys(FinetuneSettings::read_file(&yaml).unwrap()).unwrap();
    let optimizer = settings.loop_settings().unwrap().optimizer;
    assert_eq!((settings.learning_rate, settings.iters, optimizer.beta2), (1e-4, 1000, 0.98));
    assert!(optimizer.bias_correction && settings.lr_schedule.is_some());
    let toml = folder.path().join("lora.toml");
    fs::write(&toml, "model = \"m\"\ndata = \"d\"\nlearning_rate = 1e-4\n[lora_parameters]\nrank = 2\nscale = 1.0\n")
        .unwrap();
    let settings = FinetuneSettings::from_keys(FinetuneSettings::read_file(&toml).unwrap()).unwrap();
    assert_eq!(settings.lora_parameters.unwrap().rank, 2);
    for (text, why) in [
        ("learning_rat: 1\n", "unknown field `learning_rat`"),
        ("iters: 0\n", "iters is 0"),
        ("lora_parameters: {rank: eight}\n", "`lora_parameters.rank`: invalid type"),
        ("batch_size: 4294967296\n", "batch_size is 4294967296, expected at most 4294967295"),
        ("val_batches: -2\n", "val_batches is -2, expected 0 or more, or -1 for all"),
        ("optimizer: adafactor\noptimizer_config: {adafactor: {decay_rate: 0.8}}\n", "decay_rate is 0.8, expected"),
        ("optimizer: adafactor\noptimizer_config: {adafactor: {beta: 1}}\n", "unknown field `beta`"),
        ("lora_parameters: {rank: 8, alpha: 16}\n", "unknown field `alpha`"),
        ("optimizer_config: {adam: {momentum: 1}}\n", "`optimizer_config.adam`"),
        ("lr_schedule: {name: cosine_decay, arguments: [1]}\n", "expected 2 to 3"),
        ("hf_dataset: {path: a}\n", "nothing is downloaded"),
        ("iters: [\n", "lora.yaml"),
    ] {
        fs::write(&yaml, text).unwrap();
        let error = FinetuneSettings::read_file(&yaml).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("lora.yaml"), "{text}: {error}");
    }
}

#[test]
fn long_samples_are_cut_or_skipped_and_counted() {
    let samples = read(r#"{"text": "the quick brown fox jumps over the lazy dog"}"#, Targets::All).unwrap();
    let length = samples[0].tokens.len();
    assert!(length > 8);
    let cut = Samples::new(samples.clone(), 8, LongSamples::Cut);
    assert_eq!((cut.long, cut.longest()), (1, 8));
    let skipped = Samples::new(samples, 8, LongSamples::Skip);
    assert_eq!((skipped.long, skipped.samples.len()), (1, 0));
}
