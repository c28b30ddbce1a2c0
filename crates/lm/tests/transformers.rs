//! Checkpoints that transformers saved give the logits, losses, tokens and prompts of transformers.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{Device, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::perplexity::{logits, logsumexp, nll};
use alluvium_lm::{
    Change, Conversation, LanguageModel, Loaded, Message, PromptEnd, convert, convert_to_transformers, load,
};
use alluvium_ops::argmax;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// How far logits of f32 arithmetic may be, absolute. Two attention implementations of transformers differ by 5e-6, and
/// the largest logit of these models is about 12.
const LOGITS: f64 = 1e-4;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/hf")
}

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The folders of whole models.
fn folders() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|folder| folder.join("config.json").exists());
    found.sort();
    assert_eq!(found.len(), 8, "{found:?}");
    found
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

fn hidden(model: &dyn LanguageModel, ids: &[u32]) -> Tensor {
    let ids = Tensor::from_slice(ids, [1, ids.len()], model.device()).unwrap();
    let hidden = model.forward_cached(&ids, &mut model.cache(1).unwrap()).unwrap();
    hidden.reshape([ids.elements(), hidden.shape().last()]).unwrap()
}

fn last_logits(model: &dyn LanguageModel, ids: &[u32]) -> Vec<f64> {
    let last = hidden(model, ids).rows(ids.len() - 1, 1).unwrap();
    logits(model, &last).unwrap().to_vec::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn greedy(model: &dyn LanguageModel, prompt: &[u32], length: usize) -> Vec<u32> {
    let mut cache = model.cache(1).unwrap();
    let (mut input, mut made) = (prompt.to_vec(), Vec::new());
    while made.len() < length {
        let ids = Tensor::from_slice(&input, [1, input.len()], model.device()).unwrap();
        let hidden = model.forward_cached(&ids, &mut cache).unwrap();
        let last = hidden.reshape([input.len(), hidden.shape().last()]).unwrap().rows(input.len() - 1, 1).unwrap();
        input = argmax(&logits(model, &last).unwrap()).unwrap().to_vec::<u32>().unwrap();
        made.extend(&input);
    }
    made
}

/// What is wrong with a model.
fn faults(loaded: &Loaded, expected: &Value) -> Vec<String> {
    let (model, tokenizer) = (loaded.model.as_ref(), loaded.tokenizer.as_ref().unwrap());
    let [prompt, long] = [ids(&expected["prompt_ids"]), ids(&expected["long_ids"])];
    let mean = |ids: &[u32]| {
        let losses = nll(model, ids).unwrap();
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    let distances = [
        ("logits of the prompt", gap(last_logits(model, &prompt), &expected["last_logits"]), LOGITS),
        ("logits of the long prompt", gap(last_logits(model, &long), &expected["long_last_logits"]), LOGITS),
        ("logsumexp", gap(logsumexp(model, &hidden(model, &prompt)).unwrap(), &expected["logsumexp"]), LOGITS),
        ("loss of the long prompt", (mean(&long) - expected["long_mean_nll"].as_f64().unwrap()).abs(), 1e-5),
        (
            "loss of the text",
            (mean(&ids(&expected["text_ids"])) - expected["text_mean_nll"].as_f64().unwrap()).abs(),
            1e-5,
        ),
    ];
    let far = distances.iter().filter(|(_, gap, bound)| gap.is_nan() || gap > bound);
    let mut faults: Vec<String> =
        far.map(|(what, gap, bound)| format!("{what}: {gap:.1e} away, bound {bound:.0e}")).collect();
    let made = greedy(model, &prompt, 32);
    if made != ids(&expected["greedy"]) {
        faults.push(format!("after the prompt came {made:?}, expected {}", expected["greedy"]));
    }
    if tokenizer.encode(expected["text"].as_str().unwrap()).unwrap() != ids(&expected["text_ids"]) {
        faults.push("the text has other tokens".to_owned());
    }
    for chat in expected["chats"].as_array().unwrap() {
        let messages: Vec<Message> = serde_json::from_value(chat["messages"].clone()).unwrap();
        let generates = chat["add_generation_prompt"] == true;
        let end = if generates { PromptEnd::GenerationPrompt } else { PromptEnd::FinalMessage };
        let text = Conversation { end, ..Conversation::new(messages) }.render(tokenizer).unwrap();
        if text != chat["text"] || tokenizer.encode_without_special_tokens(&text).unwrap() != ids(&chat["ids"]) {
            faults.push(format!("the chat template makes {text:?}, expected {}", chat["text"]));
        }
    }
    faults
}

#[test]
fn checkpoints_of_transformers_give_its_logits_losses_tokens_and_prompts() {
    let mut wrong = String::new();
    for folder in folders() {
        let found = match load(&folder, &Device::cpu()) {
            Ok(loaded) => faults(&loaded, &json(folder.join("expected.json"))),
            Err(error) => vec![error.to_string()],
        };
        if !found.is_empty() {
            wrong += &format!("{}: {found:#?}\n", folder.display());
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The tensors of a folder of one file: name, dtype, shape and bytes.
fn tensors(folder: &Path) -> Vec<(String, String, Vec<u8>)> {
    let file = safetensors::read(folder.join("model.safetensors")).unwrap();
    let of = |name: &str| {
        let tensor = file.tensor(name, &Device::cpu()).unwrap();
        let kind = format!("{} {}", tensor.dtype(), tensor.shape());
        (name.to_owned(), kind, tensor.to_bytes().unwrap().to_vec())
    };
    file.names().map(of).collect()
}

#[test]
fn a_conversion_to_the_layout_of_transformers_gives_its_own_checkpoints_back() {
    for folder in folders() {
        let place = tempfile::tempdir().unwrap();
        let to = place.path().join("hf");
        convert_to_transformers(&folder, &to, None, &Change::None, &mut |_, _| ()).unwrap();
        assert!(tensors(&to) == tensors(&folder), "{}", folder.display());
        for name in ["config.json", "generation_config.json", "tokenizer_config.json"] {
            assert_eq!(json(to.join(name)), json(folder.join(name)), "{}: {name}", folder.display());
        }
        let [ours, theirs] = [&to, &folder].map(|f| std::fs::read_dir(f).unwrap().count());
        assert_eq!(ours, theirs, "{}", folder.display());
    }
}

#[test]
fn a_checkpoint_of_mlx_becomes_the_text_model_of_transformers() {
    for folder in folders() {
        let place = tempfile::tempdir().unwrap();
        let [mlx, hf] = ["mlx", "hf"].map(|name| place.path().join(name));
        convert(&folder, &mlx, None, &Change::None, &mut |_, _| ()).unwrap();
        convert_to_transformers(&mlx, &hf, None, &Change::None, &mut |_, _| ()).unwrap();
        let text = |name: &str| name.replace("model.language_model.", "model.");
        let mut want: Vec<_> = tensors(&folder).into_iter().filter(|(name, ..)| !name.contains("visual")).collect();
        want.iter_mut().for_each(|(name, ..)| *name = text(name));
        want.sort();
        let ours = tensors(&hf);
        assert_eq!(
            ours.iter().map(|(name, kind, _)| (name, kind)).collect::<Vec<_>>(),
            want.iter().map(|(name, kind, _)| (name, kind)).collect::<Vec<_>>(),
            "{}",
            folder.display()
        );
        for ((name, _, ours), (.., theirs)) in ours.iter().zip(&want) {
            let numbers = |bytes: &[u8]| {
                let four = |x: &[u8]| f32::from_le_bytes(x.try_into().unwrap());
                bytes.chunks_exact(4).map(four).collect::<Vec<f32>>()
            };
            // one was added and taken away again in f32
            let bound = if name.ends_with("norm.weight") { 6e-8 } else { 0.0 };
            let far = numbers(ours).iter().zip(numbers(theirs)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far <= bound, "{}: {name} is {far:e} away", folder.display());
        }
        let (config, original) = (json(hf.join("config.json")), json(folder.join("config.json")));
        let original = if original["text_config"].is_object() { &original["text_config"] } else { &original };
        for (key, value) in original.as_object().unwrap() {
            assert_eq!(&config[key], value, "{}: {key}", folder.display());
        }
        let faults = faults(&load(&hf, &Device::cpu()).unwrap(), &json(folder.join("expected.json")));
        assert!(faults.is_empty(), "{}: {faults:#?}", folder.display());
    }
}

#[test]
fn quantized_matrices_are_dequantized_on_request_or_refused() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/qwen3_next-q4g64");
    let place = tempfile::tempdir().unwrap();
    let [hf, plain] = ["hf", "plain"].map(|name| place.path().join(name));
    let error = convert_to_transformers(&folder, &hf, None, &Change::None, &mut |_, _| ()).unwrap_err().to_string();
    assert!(error.contains("is quantized, which transformers does not read; add -d to dequantize"), "{error}");
    convert_to_transformers(&folder, &hf, None, &Change::Dequantize, &mut |_, _| ()).unwrap();
    convert(&folder, &plain, None, &Change::Dequantize, &mut |_, _| ()).unwrap();
    let [ours, want] = [&hf, &plain].map(|folder| load(folder, &Device::cpu()).unwrap().model);
    let ids = [5, 9, 200, 31];
    let [ours, want] = [ours, want].map(|model| last_logits(model.as_ref(), &ids));
    let far = ours.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far < 1e-4, "{far}");
    assert!(tensors(&hf).iter().any(|(name, ..)| name.ends_with("mlp.experts.3.up_proj.weight")));
}
