//! Every model in `fixtures/models` gives the numbers that mlx-lm gives for it.
//!
//! A model that is stored in half precision, or quantised, is compared with what mlx-lm computes in f32 from the very
//! same stored numbers (`…_f32ref`): activations are f32 here, so nothing but the order of sums is left between the two,
//! and one bound serves all but one kind. Affine packing with scales in half precision is compared less closely: mlx rounds
//! each number to the dtype of the scales when it makes a matrix plain, as the reference was made, and does not when
//! it multiplies; neither do we. Those must be nearer to the reference than mlx-lm's own run in the stored dtype. Another folder like `fixtures` in `ALLUVIUM_FIXTURES` is compared in place of it.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::wgpu::{Gpu, adapters};
use alluvium_core::{Device, Tensor};
use alluvium_lm::formats::chat::{Ending, Message};
use alluvium_lm::perplexity::{logits, logsumexp, nll};
use alluvium_lm::{LanguageModel, Loaded, load};
use alluvium_ops::argmax;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// How far logits may be, absolute: they are as large as 20, and are reached through a thousand roundings of f32.
const LOGITS: f64 = 5e-5;
/// How far the logarithm of a sum of them may be.
const LOGSUMEXP: f64 = 1e-4;

/// The folders of models, each with what mlx-lm gave for it.
fn folders() -> Vec<(PathBuf, Value)> {
    let ours = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let root = std::env::var_os("ALLUVIUM_FIXTURES").map_or(ours, PathBuf::from);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join("models")).unwrap() {
        let folder = entry.unwrap().path();
        let expected = std::fs::read(folder.join("expected.json")).unwrap();
        found.push((folder, serde_json::from_slice(&expected).unwrap()));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap().to_string_lossy().into_owned()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn gap(ours: impl IntoIterator<Item = f64>, theirs: &Value) -> f64 {
    let theirs: Vec<f64> = theirs.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    let ours: Vec<f64> = ours.into_iter().collect();
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Of mlx-lm's run in f32, which is the only one where the model is in f32.
fn last_logits(prompt: &Value) -> &Value {
    if prompt["last_logits_f32ref"].is_null() { &prompt["last_logits"] } else { &prompt["last_logits_f32ref"] }
}

fn row(ids: &[u32], device: &Device) -> Tensor {
    Tensor::from_slice(ids, [1, ids.len()], device).unwrap()
}

fn hidden(model: &dyn LanguageModel, ids: &[u32], device: &Device) -> Tensor {
    let mut cache = model.cache(1).unwrap();
    let hidden = model.step(&row(ids, device), &mut cache).unwrap();
    hidden.reshape([ids.len(), hidden.shape().last()]).unwrap()
}

/// The likeliest token after each, as long as asked for.
fn greedy(model: &dyn LanguageModel, prompt: &[u32], length: usize, device: &Device) -> Vec<u32> {
    let mut cache = model.cache(1).unwrap();
    let (mut input, mut made) = (prompt.to_vec(), Vec::new());
    while made.len() < length {
        let hidden = model.step(&row(&input, device), &mut cache).unwrap();
        let [tokens, width] = [hidden.shape()[1], hidden.shape()[2]];
        let last = hidden.reshape([tokens, width]).unwrap().rows(tokens - 1, 1).unwrap();
        input = argmax(&logits(model, &last).unwrap()).unwrap().to_vec::<u32>().unwrap();
        made.extend(&input);
    }
    made
}

/// Whether some matrix is packed with scales and biases in half precision.
fn has_rounded_scales(folder: &Path) -> bool {
    let described = alluvium_lm::describe(folder).unwrap();
    described.tensors.iter().any(|t| t.name.ends_with(".biases") && t.dtype != "F32")
}

fn message(json: &Value) -> Message {
    Message::new(json["role"].as_str().unwrap(), json["content"].as_str().unwrap())
}

/// What is wrong with one model, and how far it is at most.
fn compare(folder: &Path, expected: &Value, device: &Device) -> (f64, f64, Vec<String>) {
    let Loaded { model, tokenizer, .. } = load(folder, device).unwrap();
    let (model, tokenizer) = (model.as_ref(), tokenizer.unwrap());
    let (mut far, mut far_sums, mut faults) = (0.0f64, 0.0f64, Vec::new());
    // where mlx-lm's own run is in f32, its sums at every position can be compared
    let single = expected["max_abs_diff_vs_f32ref"] == 0.0;
    for prompt in expected["prompts"].as_array().unwrap() {
        let ids = ids(&prompt["ids"]);
        let hidden = hidden(model, &ids, device);
        let last = logits(model, &hidden.rows(ids.len() - 1, 1).unwrap()).unwrap().to_vec::<f32>().unwrap();
        far = far.max(gap(last.into_iter().map(f64::from), last_logits(prompt)));
        if single {
            far_sums = far_sums.max(gap(logsumexp(model, &hidden).unwrap(), &prompt["logsumexp"]));
        }
    }
    let losses = nll(model, &ids(&expected["prompts"][4]["ids"])).unwrap();
    let (mean, want) = (losses.iter().sum::<f64>() / losses.len() as f64, &expected["nll_200"]);
    let want = if want["mean_f32ref"].is_null() { &want["mean"] } else { &want["mean_f32ref"] };
    let bound = if has_rounded_scales(folder) { 1e-3 } else { 1e-5 };
    if (mean - want.as_f64().unwrap()).abs() > bound {
        faults.push(format!("a token costs {mean}, expected {want}"));
    }
    for run in expected["greedy"].as_array().unwrap() {
        let prompt = &ids(&expected["prompts"][4]["ids"])[..run["prompt_len"].as_u64().unwrap() as usize];
        let want = if run["tokens_f32ref"].is_null() { &run["tokens"] } else { &run["tokens_f32ref"] };
        let (made, want) = (greedy(model, prompt, 32, device), ids(want));
        if made != want {
            faults.push(format!("after {} tokens came {made:?}, expected {want:?}", prompt.len()));
        }
    }
    let theirs = &expected["tokenizer"];
    for pair in theirs["extra"].as_array().unwrap().iter().chain([theirs]) {
        let text = pair["text"].as_str().unwrap();
        if tokenizer.encode(text).unwrap() != ids(&pair["ids"]) {
            faults.push(format!("{text:?} has other tokens"));
        }
    }
    for chat in theirs["chat"].as_array().unwrap() {
        let messages: Vec<Message> = chat["messages"].as_array().unwrap().iter().map(message).collect();
        let text = tokenizer.chat(&messages, Ending::Answer, chat["kwargs"].as_object().unwrap()).unwrap();
        if text != chat["text"] || tokenizer.encode_plain(&text).unwrap() != ids(&chat["ids"]) {
            faults.push(format!("the chat template makes {text:?}, expected {}", chat["text"]));
        }
    }
    let mut eos = tokenizer.eos_token_ids().to_vec();
    eos.sort_unstable();
    if eos != ids(&theirs["eos_token_ids"]) {
        faults.push(format!("a text ends with {eos:?}, expected {}", theirs["eos_token_ids"]));
    }
    (far, far_sums, faults)
}

/// Compares the models of these folders.
fn hold(device: &Device, wanted: impl Fn(&str) -> bool) {
    let mut wrong = String::new();
    for (folder, expected) in folders().into_iter().filter(|(folder, _)| wanted(&name(folder))) {
        let (far, far_sums, faults) = compare(&folder, &expected, device);
        let rounded = has_rounded_scales(&folder);
        let theirs = expected["max_abs_diff_vs_f32ref"].as_f64().unwrap();
        let bound = if rounded { 0.7 * theirs } else { LOGITS };
        println!("{:28} logits {far:.1e} of {bound:.1e}, logsumexp {far_sums:.1e}", name(&folder));
        if far > bound || far_sums > LOGSUMEXP || !faults.is_empty() {
            wrong += &format!("{}: logits {far:.1e}, logsumexp {far_sums:.1e} {faults:?}\n", name(&folder));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_model_gives_the_numbers_of_mlx_lm() {
    hold(&Device::cpu(), |_| true);
}

/// One of each kind of packing, and mixtures: software stands in for a GPU in tests, where all would take too long.
const ON_A_GPU: &[&str] = &[
    "llama-q4g64",
    "qwen3_5-bf16-mixed_3_6",
    "qwen3_5-mxfp4",
    "qwen3_5-nvfp4",
    "qwen3_5-q4g64",
    "qwen3_5_moe-f32",
    "qwen3_next-q4g64",
];

#[test]
fn quantised_models_and_mixtures_give_the_numbers_of_mlx_lm_on_a_gpu() {
    if adapters().is_empty() {
        assert!(std::env::var_os("CI").is_none(), "no GPU was found, not even a software one");
        eprintln!("skipped: no GPU was found (Debian's mesa-vulkan-drivers has one in software)");
        return;
    }
    hold(&Gpu::builder().poison().open().unwrap().into(), |name| ON_A_GPU.contains(&name));
}
