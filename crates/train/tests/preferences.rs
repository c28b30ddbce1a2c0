//! Preferences on pairs of answers, and data in Parquet files.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{Device, Tensor};
use alluvium_lm::adapter::FineTuneType;
use alluvium_lm::{
    Batch, Cache, CacheShape, Checkpointing, LanguageModel, LoraParameters, Tokenizer, Weight, attach_low_rank, load,
    params, perplexity, visit_trainable_mut,
};
use alluvium_train::data::{LongSamples, PackedBatch, Sample, Samples, Targets, read_pairs, read_samples};
use alluvium_train::finetune::{Finetune, FinetuneSettings, Start};
use alluvium_train::{Event, NextToken, Objective, Preference, References, RunStatus, gradients};
use serde_json::{Map, Value, json};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

fn tokenizer() -> Tokenizer {
    Tokenizer::load(fixture("models/qwen3_5-f32")).unwrap()
}

/// Requests with a short and a long answer.
fn pairs(count: usize) -> String {
    let words = ["state", "rule", "text", "step", "delta", "gate"];
    let line = |i: usize| {
        let (a, b) = (words[i % 6], words[(i * 5 + 1) % 6]);
        json!({"prompt": format!("say {a} and {b}"), "chosen": format!("{a} {b}"), "rejected": format!("no {b} {b} {a}")})
    };
    (0..count).map(|i| format!("{}\n", line(i))).collect()
}

fn read(text: &str) -> Result<Vec<[Sample; 2]>, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.jsonl");
    fs::write(&path, text).unwrap();
    read_pairs(&path, &tokenizer()).map_err(|error| error.to_string())
}

fn batch(pairs: &[[Sample; 2]]) -> PackedBatch {
    Samples::of_pairs(pairs.to_vec(), 100, LongSamples::Cut).batches(pairs.len(), 1).remove(0)
}

/// A model whose adapter is not the one that it begins with.
fn moved(name: &str, keys: Option<&[&str]>) -> Box<dyn LanguageModel> {
    let mut model = load(&fixture(name), &Device::cpu()).unwrap().model;
    alluvium_lm::freeze(model.as_mut(), &|_| true);
    let keys = keys.map(|keys| keys.iter().map(|key| (*key).to_owned()).collect());
    let parameters = LoraParameters { rank: 4, scale: 4.0, keys, ..LoraParameters::default() };
    attach_low_rank(model.as_mut(), FineTuneType::Lora, &parameters, -1, 3).unwrap();
    visit_trainable_mut(model.as_mut(), &mut |name, slot| {
        if name.ends_with("lora_b") {
            let wave = (0..slot.elements()).map(|i| 0.03 * (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
            *slot = Tensor::from_slice(&wave, slot.shape(), slot.device()).unwrap();
        }
    });
    model
}

/// The log-probability of a sample's answer and its number of tokens, by another path.
fn log_probability(model: &dyn LanguageModel, sample: &Sample) -> (f64, f64) {
    let losses = perplexity::nll(model, &sample.tokens).unwrap();
    let answer = sample.answers[0].clone();
    (-losses[answer.start - 1..answer.end - 1].iter().sum::<f64>(), answer.len() as f64)
}

fn log_sigmoid(x: f64) -> f64 {
    -(-x).exp().ln_1p()
}

#[test]
fn the_losses_are_those_of_the_papers() {
    let pairs = read(&pairs(3)).unwrap();
    let (beta, batch) = (0.3, batch(&pairs));
    for (name, keys) in [
        ("models/qwen3_5-f32", None),
        ("models/qwen3_5-q4g64", None),
        ("models/qwen3-f32", Some(&["lm_head", "mlp.up_proj"][..])),
    ] {
        let (plain, model) = (load(&fixture(name), &Device::cpu()).unwrap().model, moved(name, keys));
        let forward = NextToken::new(&Device::cpu());
        let reference = Some(References::of(plain.as_ref(), std::slice::from_ref(&batch)).unwrap());
        let dpo = Preference { model: forward.clone(), beta: beta as f32, reference };
        let orpo = Preference { model: forward, beta: beta as f32, reference: None };
        let (mut want_dpo, mut want_orpo) = (0.0, 0.0);
        for [chosen, rejected] in &pairs {
            let ratio = |sample| log_probability(model.as_ref(), sample).0 - log_probability(plain.as_ref(), sample).0;
            want_dpo -= log_sigmoid(beta * (ratio(chosen) - ratio(rejected))) / 3.0;
            let [mean, other] = [chosen, rejected].map(|sample| log_probability(model.as_ref(), sample));
            let (mean, other) = (mean.0 / mean.1, other.0 / other.1);
            let odds = |m: f64| m - (1.0 - m.exp()).ln();
            want_orpo += (-mean - beta * log_sigmoid(odds(mean) - odds(other))) / 3.0;
        }
        for (objective, want) in [(&dpo, want_dpo), (&orpo, want_orpo)] {
            let got = f64::from(objective.loss(model.as_ref(), &batch).unwrap().item().unwrap());
            assert!((got - want).abs() < 2e-5 * want, "{name}: {got}, expected {want}");
            assert_eq!(objective.weight(&batch), 3.0);
        }
        // before a step the model is its own reference
        let begun = f64::from(dpo.loss(plain.as_ref(), &batch).unwrap().item().unwrap());
        assert!((begun - 2f64.ln()).abs() < 1e-5, "{begun}");
        assert!((want_dpo - 2f64.ln()).abs() > 1e-3, "{want_dpo}");
    }
}

#[test]
fn gradients_are_those_of_differences() {
    let batch = batch(&read(&pairs(2)).unwrap());
    let name = "models/qwen3_5-q4g64";
    let plain = load(&fixture(name), &Device::cpu()).unwrap().model;
    let reference = References::of(plain.as_ref(), std::slice::from_ref(&batch)).unwrap();
    for reference in [Some(reference), None] {
        let mut model = moved(name, None);
        let objective = Preference { model: NextToken::new(&Device::cpu()), beta: 0.5, reference };
        let found = gradients(model.as_mut(), &objective, std::slice::from_ref(&batch)).unwrap().by_name;
        let values = |x: &Tensor| x.to_vec::<f32>().unwrap();
        let square: f64 = found.values().flat_map(values).map(|x| f64::from(x).powi(2)).sum();
        let step = 5e-3 / square.sqrt();
        let at = |by: f64| {
            let mut model = moved(name, None);
            visit_trainable_mut(model.as_mut(), &mut |name, slot| {
                let (old, along) = (values(slot), values(&found[&name]));
                let new: Vec<f32> = old.iter().zip(along).map(|(x, g)| x + by as f32 * g).collect();
                *slot = Tensor::from_slice(&new, slot.shape(), slot.device()).unwrap();
            });
            f64::from(objective.loss(model.as_ref(), &batch).unwrap().item().unwrap())
        };
        let measured = (at(step) - at(-step)) / (2.0 * step);
        // the third derivative and the rounding of two f32 losses
        assert!((measured - square).abs() < 0.02 * square, "{measured}, expected {square}");
    }
}

/// A model that gives every token the same logits.
struct Constant {
    head: Weight,
}
params!(Constant { head });

impl LanguageModel for Constant {
    fn forward(&self, batch: &Batch<'_>, _: Checkpointing) -> alluvium_core::Result<Tensor> {
        Tensor::full([1, batch.ids.elements(), 1], 1.0, self.device())
    }

    fn forward_cached(&self, ids: &Tensor, _: &mut Cache) -> alluvium_core::Result<Tensor> {
        Tensor::full([1, ids.elements(), 1], 1.0, self.device())
    }

    fn lm_head(&self) -> &Weight {
        &self.head
    }

    fn cache_shapes(&self) -> Vec<CacheShape> {
        Vec::new()
    }
}

/// ORPO's loss of an answer of token 0 and a rejected one of token 1, and the gradient of the logits.
fn orpo(logits: [f32; 3]) -> (f64, Vec<f32>) {
    let head = Tensor::from_slice(&logits, [3, 1], &Device::cpu()).unwrap();
    let mut model: Box<dyn LanguageModel> = Box::new(Constant { head: Weight::Dense(head.into()) });
    let (inputs, positions) = (vec![2; 4], vec![0, 1, 0, 1]);
    let batch = PackedBatch { inputs, targets: vec![0, 0, 1, 1], positions, offsets: vec![0, 2, 4] };
    let objective = Preference { model: NextToken::new(&Device::cpu()), beta: 0.5, reference: None };
    let found = gradients(model.as_mut(), &objective, &[batch]).unwrap();
    (found.loss.item().unwrap().into(), found.by_name["head.weight"].to_vec().unwrap())
}

#[test]
fn certain_answers_have_finite_odds_and_gradients() {
    for logits in [[90.0, 0.0, 0.0], [0.0, 90.0, 0.0], [17.0, 0.0, 0.0], [12.0, 0.0, 0.0], [0.0, 16.0, 1.0]] {
        let (loss, gradient) = orpo(logits);
        assert!(loss.is_finite() && gradient.iter().all(|x| x.is_finite()), "{logits:?}: {loss}, {gradient:?}");
    }
    // a certain chosen answer has nothing left to win, a certain rejected one costs most
    assert!(orpo([90.0, 0.0, 0.0]).0 < 1e-6 && orpo([0.0, 90.0, 0.0]).0 > 90.0 + 0.5 * 90.0);
    for logits in [[3.0f32, 0.0, 1.0], [0.0, 4.0, -1.0], [7.0, 1.0, 2.0]] {
        let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let [good, bad] = [0, 1].map(|token| f64::from(logits[token]) - sum.ln());
        let odds = |m: f64| m - (-m.exp_m1()).ln();
        let want = -good + 0.5 * (odds(bad) - odds(good)).exp().ln_1p();
        let got = orpo(logits).0;
        assert!((got - want).abs() < 2e-5 * want.max(0.1), "{logits:?}: {got}, expected {want}");
    }
}

fn settings(folder: &Path, more: Value) -> FinetuneSettings {
    fs::write(folder.join("train.jsonl"), pairs(12)).unwrap();
    fs::write(folder.join("valid.jsonl"), pairs(4)).unwrap();
    let mut keys: Map<String, Value> = serde_json::from_value(json!({
        "model": fixture("models/qwen3_5-bf16-q4g64"), "data": folder, "adapter_path": folder.join("adapters"),
        "train": true, "iters": 6, "batch_size": 3, "num_layers": -1, "learning_rate": 5e-3, "save_every": 2,
        "steps_per_eval": 3, "loss": "dpo", "lora_parameters": {"rank": 4, "scale": 10.0},
    }))
    .unwrap();
    keys.extend(serde_json::from_value::<Map<String, Value>>(more).unwrap());
    FinetuneSettings::from_keys(keys).unwrap()
}

fn prepare(settings: FinetuneSettings, start: Start) -> Result<Finetune, String> {
    Finetune::prepare(settings, start, &Device::cpu(), &mut |_| CONTINUE).map_err(|error| error.to_string())
}

#[test]
fn a_run_learns_to_prefer_and_resumes_bit_for_bit() {
    let (whole, parts, odds) = (tempfile::tempdir(), tempfile::tempdir(), tempfile::tempdir());
    let [whole, parts, odds] = [&whole, &parts, &odds].map(|folder| folder.as_ref().unwrap().path());
    let losses = |run: &Finetune| run.trainer.metrics().iter().filter_map(|row| row.val_loss).collect::<Vec<_>>();
    let mut run = prepare(settings(whole, json!({})), Start::Begin).unwrap();
    run.run(&mut |_| CONTINUE).unwrap();
    let dpo = losses(&run);
    assert!((dpo[0] - 2f64.ln()).abs() < 1e-5 && dpo[2] < 0.5, "{dpo:?}");
    let mut run = prepare(settings(odds, json!({"loss": "orpo"})), Start::Begin).unwrap();
    run.run(&mut |_| CONTINUE).unwrap();
    let orpo = losses(&run);
    assert!(orpo[2] < 0.9 * orpo[0] && !odds.join("adapters/reference_logprobs.json").exists(), "{orpo:?}");

    let mut run = prepare(settings(parts, json!({})), Start::Begin).unwrap();
    let stop = &mut |event: Event<'_>| match event {
        Event::Stepped { step: 2, .. } => ControlFlow::Break(()),
        _ => CONTINUE,
    };
    assert_eq!(run.run(stop).unwrap(), RunStatus::Stopped);
    drop(run);
    let references = || fs::read(parts.join("adapters/reference_logprobs.json")).unwrap();
    let before = references();
    let error = prepare(settings(parts, json!({"beta": 0.2})), Start::Resume).unwrap_err();
    assert!(error.contains("cannot be resumed with another beta: it was 0.1"), "{error}");
    prepare(settings(parts, json!({})), Start::Resume).unwrap().run(&mut |_| CONTINUE).unwrap();
    assert!(references() == before);
    let adapter = |folder: &Path| fs::read(folder.join("adapters/adapters.safetensors")).unwrap();
    assert!(adapter(whole) == adapter(parts));
}

#[test]
fn forms_of_pairs_give_the_same_samples_and_wrong_lines_are_named() {
    let (user, good, bad) = (
        json!({"role": "user", "content": "add one to two"}),
        json!({"role": "assistant", "content": "three"}),
        json!({"role": "assistant", "content": "four"}),
    );
    let forms = [
        json!({"prompt": "add one to two", "chosen": "three", "rejected": "four"}),
        json!({"prompt": [user], "chosen": [good], "rejected": [bad]}),
        json!({"chosen": [user, good], "rejected": [user, bad]}),
        json!({"prompt": "add one to two", "chosen": [user, good], "rejected": [user, bad]}),
    ];
    let text: Vec<String> = forms.iter().map(Value::to_string).collect();
    let all = read(&text.join("\n")).unwrap();
    assert!(all.len() == 4 && all.iter().all(|pair| *pair == all[0]), "{all:?}");
    let decoded = |sample: &Sample| tokenizer().decode(&sample.tokens[sample.answers[0].clone()]).unwrap();
    assert!(decoded(&all[0][0]).contains("three") && decoded(&all[0][1]).contains("four"));
    assert!(!decoded(&all[0][0]).contains("one"));
    for (line, why) in [
        (json!({"chosen": "a"}), "line 2: the line has `chosen`; expected `chosen` and `rejected`"),
        (json!({"prompt": "a", "chosen": 3, "rejected": "b"}), "line 2: `chosen` is 3, expected a string or messages"),
        (json!({"chosen": [user], "rejected": [bad]}), "line 2: `chosen` does not end with a message of the assistant"),
    ] {
        let error = read(&format!("{}\n{line}\n", forms[0])).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    // a pair stays whole or goes
    let cut = Samples::of_pairs(all.clone(), 6, LongSamples::Skip);
    assert!(cut.is_empty() && cut.long == 8, "{cut:?}");
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_files_give_the_samples_of_json_lines() {
    let folder = tempfile::tempdir().unwrap();
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let lines = [
        json!({"id": 1, "messages": [turn("user", "add one to two"), turn("assistant", "three")]}),
        json!({"id": 2, "messages": [
            turn("user", "die Zahl nach fünf"), turn("assistant", "sechs"), turn("user", "and one more"),
            turn("assistant", "seven"),
        ]}),
    ];
    let path = folder.path().join("train.jsonl");
    fs::write(&path, lines.map(|line| line.to_string()).join("\n")).unwrap();
    let tokenizer = tokenizer();
    let read = |path: &Path| read_samples(path, &tokenizer, Targets::Answers).map_err(|error| error.to_string());
    let want = read(&path).unwrap();
    for compression in ["snappy", "gzip", "none"] {
        let path = fixture(&format!("parquet/{compression}.parquet"));
        assert_eq!(read(&path).unwrap(), want, "{compression}");
    }
    let error = read(&fixture("parquet/zstd.parquet")).unwrap_err();
    assert!(error.contains("its compression is not read") && error.contains("zstd.parquet"), "{error}");
    // damaged and cut files are errors, whatever the decoder does with them
    let whole = fs::read(fixture("parquet/snappy.parquet")).unwrap();
    let damaged = folder.path().join("damaged.parquet");
    let mut refused = 0;
    for at in (0..whole.len()).step_by(3) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(&damaged, &bytes).unwrap();
        refused += usize::from(read(&damaged).is_err());
        fs::write(&damaged, &whole[..at]).unwrap();
        let error = read(&damaged).unwrap_err();
        assert!(error.contains("damaged.parquet"), "{error}");
    }
    assert!(refused > whole.len() / 9, "{refused} of {}", whole.len() / 3);
}
