//! The numbers of mlx-lm, from `fixtures/`.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::cpu::Cpu;
use alluvium_core::{Device, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::perplexity::{logits, logsumexp, nll};
use alluvium_lm::{
    Batch, Checkpointing, FinishReason, GenerateOptions, GenerationBatch, LanguageModel, Loaded, RepetitionPenalty,
    Request, Session, generate, generate_batch, load, parameter_count, save,
};
use alluvium_ops::{Sampling, scale};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::PathBuf;

fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(path)).unwrap()).unwrap()
}

fn model() -> (Loaded, Value) {
    let loaded = load(&fixture("models/qwen3_5-f32"), &Device::cpu()).unwrap();
    (loaded, json("models/qwen3_5-f32/expected.json"))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn tensor(ids: &[u32]) -> Tensor {
    Tensor::from_slice(ids, [1, ids.len()], &Device::cpu()).unwrap()
}

/// Hidden states `[T, D]` of the prompt, read in pieces of `piece` tokens.
fn prefill(model: &dyn LanguageModel, ids: &[u32], piece: usize) -> Tensor {
    let mut cache = model.cache(1).unwrap();
    let mut rows = Vec::new();
    for part in ids.chunks(piece) {
        rows.extend(model.forward_cached(&tensor(part), &mut cache).unwrap().to_vec::<f32>().unwrap());
    }
    assert_eq!(cache.offset(), ids.len());
    Tensor::from_slice(&rows, [ids.len(), rows.len() / ids.len()], &Device::cpu()).unwrap()
}

fn gap(ours: &[f32], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
}

fn worst(ours: &[f32], theirs: &[f32]) -> f64 {
    gap(ours, &theirs.iter().map(|&x| f64::from(x)).collect::<Vec<_>>())
}

fn training_forward(model: &dyn LanguageModel, ids: &[u32], keep: Checkpointing) -> Vec<f32> {
    let positions: Vec<u32> = (0..ids.len() as u32).collect();
    let batch = Batch { ids: &tensor(ids), positions: &tensor(&positions), cu_seqlens: None };
    model.forward(&batch, keep).unwrap().to_vec().unwrap()
}

#[test]
fn logits_and_logsumexp_are_those_of_mlx_lm() {
    let (Loaded { model, .. }, expected) = model();
    for prompt in expected["prompts"].as_array().unwrap() {
        let ids = ids(&prompt["ids"]);
        let hidden = prefill(model.as_ref(), &ids, ids.len());
        let last = logits(model.as_ref(), &hidden.rows(ids.len() - 1, 1).unwrap()).unwrap();
        let far = gap(&last.to_vec::<f32>().unwrap(), &numbers(&prompt["last_logits"]));
        assert!(far < 2e-5, "{} tokens: the last logits are {far} away", ids.len());
        let sums = logsumexp(model.as_ref(), &hidden).unwrap();
        let far = numbers(&prompt["logsumexp"]).iter().zip(&sums).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far < 1e-4, "{} tokens: a logsumexp is {far} away", ids.len());
    }
}

/// Queries and keys so short that what is added to the sum of their squares counts.
#[test]
fn logits_with_small_projections_are_those_of_mlx_lm() {
    let (Loaded { mut model, .. }, expected) = model();
    let golden = &expected["small_projections"];
    let factor = golden["factor"].as_f64().unwrap() as f32;
    model.visit_mut("", &mut |name, tensor| {
        if name.ends_with("in_proj_qkv.weight") {
            *tensor = scale(tensor, factor).unwrap();
        }
    });
    let ids = ids(&expected["prompts"][golden["prompt"].as_u64().unwrap() as usize]["ids"]);
    let hidden = prefill(model.as_ref(), &ids, ids.len()).rows(ids.len() - 1, 1).unwrap();
    let last = logits(model.as_ref(), &hidden).unwrap().to_vec::<f32>().unwrap();
    let far = gap(&last, &numbers(&golden["last_logits"]));
    assert!(far < 1e-4, "the last logits are {far} away");
}

#[test]
fn the_perplexity_of_a_text_is_that_of_mlx_lm() {
    let (Loaded { model, .. }, expected) = model();
    let losses = nll(model.as_ref(), &ids(&expected["prompts"][4]["ids"])).unwrap();
    let mean = losses.iter().sum::<f64>() / losses.len() as f64;
    let want = expected["nll_200"]["mean"].as_f64().unwrap();
    assert!((mean - want).abs() < 1e-5, "{mean}, expected {want}");
}

#[test]
fn greedy_text_is_that_of_mlx_lm() {
    let (Loaded { model, tokenizer, .. }, expected) = model();
    let tokenizer = tokenizer.unwrap();
    let prompt = ids(&expected["prompts"][4]["ids"]);
    for run in expected["greedy"].as_array().unwrap() {
        let length = run["prompt_len"].as_u64().unwrap() as usize;
        let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
        let options = GenerateOptions { max_tokens: 32, sampling, seed: 1, ..GenerateOptions::default() };
        let made = generate(model.as_ref(), Some(&tokenizer), &prompt[..length], &options).unwrap();
        assert_eq!(made.tokens, ids(&run["tokens"]));
        assert_eq!(
            (made.text.as_str(), made.finish_reason),
            (run["text"].as_str().unwrap(), Some(FinishReason::Length))
        );
    }
}

#[test]
fn the_tokenizer_is_that_of_mlx_lm() {
    let (Loaded { tokenizer, .. }, expected) = model();
    let (tokenizer, expected) = (tokenizer.unwrap(), &expected["tokenizer"]);
    let pairs = expected["extra"].as_array().unwrap().iter().chain([expected]);
    for pair in pairs {
        assert_eq!(tokenizer.encode(pair["text"].as_str().unwrap()).unwrap(), ids(&pair["ids"]), "{}", pair["text"]);
    }
    let mut eos = tokenizer.eos_token_ids().to_vec();
    eos.sort_unstable();
    assert_eq!(eos, ids(&expected["eos_token_ids"]));
    assert_eq!(tokenizer.vocab_size(), 367);
}

#[test]
fn a_prompt_at_once_in_pieces_and_by_token_gives_the_same() {
    let (Loaded { model, .. }, expected) = model();
    let ids = ids(&expected["prompts"][4]["ids"]);
    let whole = prefill(model.as_ref(), &ids, ids.len()).to_vec::<f32>().unwrap();
    for piece in [1, 7, 64, 65, 199] {
        let pieces = prefill(model.as_ref(), &ids, piece).to_vec::<f32>().unwrap();
        let far = worst(&pieces, &whole);
        assert!(far < 1e-4, "in pieces of {piece}: {far} away");
    }
}

#[test]
fn training_and_inference_compute_the_same() {
    let (Loaded { model, .. }, expected) = model();
    let ids = ids(&expected["prompts"][4]["ids"]);
    let inference = prefill(model.as_ref(), &ids, ids.len()).to_vec::<f32>().unwrap();
    let training = training_forward(model.as_ref(), &ids, Checkpointing::None);
    assert_eq!(training.len(), inference.len());
    assert!(worst(&training, &inference) < 1e-5);
    assert_eq!(training, training_forward(model.as_ref(), &ids, Checkpointing::Layers));
}

#[test]
fn packed_texts_do_not_see_each_other() {
    let (Loaded { model, .. }, expected) = model();
    let ids = ids(&expected["prompts"][4]["ids"]);
    let (first, second) = (&ids[..70], &ids[100..165]);
    let packed: Vec<u32> = [first, second].concat();
    let positions: Vec<u32> = (0..70).chain(0..65).collect();
    let offsets = Tensor::from_slice(&[0u32, 70, 135], [3], &Device::cpu()).unwrap();
    let batch = Batch { ids: &tensor(&packed), positions: &tensor(&positions), cu_seqlens: Some(&offsets) };
    let apart = [first, second].map(|ids| training_forward(model.as_ref(), ids, Checkpointing::None)).concat();
    for keep in [Checkpointing::None, Checkpointing::Layers] {
        let together = model.forward(&batch, keep).unwrap().to_vec::<f32>().unwrap();
        assert!(worst(&together, &apart) < 1e-4);
    }
}

#[test]
fn a_batch_of_two_generates_what_each_alone_does() {
    let (Loaded { model, .. }, expected) = model();
    let ids = ids(&expected["prompts"][4]["ids"]);
    let (a, b) = (&ids[..20], &ids[50..70]);
    let mut cache = model.cache(2).unwrap();
    let mut both = Vec::new();
    for part in [0..12, 12..13, 13..20] {
        let rows = [&a[part.clone()], &b[part.clone()]].concat();
        let rows = Tensor::from_slice(&rows, [2, part.len()], &Device::cpu()).unwrap();
        both = model.forward_cached(&rows, &mut cache).unwrap().to_vec::<f32>().unwrap();
    }
    let alone = [a, b].map(|ids| prefill(model.as_ref(), ids, 20).rows(13, 7).unwrap().to_vec::<f32>().unwrap());
    assert!(worst(&both, &alone.concat()) < 1e-4);
}

#[test]
fn a_session_reads_what_two_prompts_share_once_and_answers_as_one_that_reads_all() {
    let (Loaded { model, tokenizer, .. }, expected) = model();
    let (model, tokenizer) = (model.as_ref(), tokenizer.unwrap());
    let ids = ids(&expected["prompts"][4]["ids"]);
    // longer than what is read at once, so that there are snapshots between
    let long: Vec<u32> = ids.iter().cycle().take(1_200).copied().collect();
    let options = GenerateOptions { max_tokens: 6, ..GenerateOptions::default() };
    let mut session = Session::new(model).unwrap();
    for (prompt, reused) in [
        (long.clone(), 0),
        // what was made is known as well, but for the last token
        ([&long[..], &[7, 8]].concat(), 1_200),
        ([&long[..1_100], &[7, 8]].concat(), 1_024),
        ([&long[..600], &[7, 8]].concat(), 512),
        (long[..600].to_vec(), 512),
        (vec![9, 9], 0),
    ] {
        let ours = session.generate(Some(&tokenizer), &prompt, &options).unwrap();
        let whole = generate(model, Some(&tokenizer), &prompt, &options).unwrap();
        assert_eq!(ours.tokens, whole.tokens);
        assert_eq!((ours.reused_tokens, ours.prompt_tokens), (reused, prompt.len()));
    }
}

#[test]
fn a_session_for_one_prompt_holds_no_states_but_its_own_and_goes_on_but_not_back() {
    let folder = fixture("models/qwen3_5-f32");
    let held = |one: bool| {
        let cpu = Cpu::builder().open().unwrap();
        let Loaded { model, .. } = load(&folder, &cpu.clone().into()).unwrap();
        let before = cpu.memory().in_use();
        let mut session = Session::new(model.as_ref()).unwrap();
        if one {
            session = session.without_snapshots();
        }
        let ids: Vec<u32> = (0..1100).map(|i| i % 300).collect();
        assert_eq!(session.prefill(&ids).unwrap(), 0);
        let held = (cpu.memory().in_use() - before) as f64 / session.cache().bytes() as f64;
        assert_eq!(session.prefill(&[&ids[..], &[7, 8]].concat()).unwrap(), 1100);
        (held, session.prefill(&[9, 9]).map_err(|error| error.to_string()))
    };
    let why = "generate: the session keeps no snapshots; make a new session for this prompt";
    let (many, one) = (held(false), held(true));
    assert_eq!([&many.1, &one.1], [&Ok(0), &Err(why.to_owned())]);
    // size classes and the last hidden row are a little
    assert!(one.0 < 1.15 && many.0 > 1.3 * one.0, "{many:?} {one:?}");
}

#[test]
fn a_batch_of_different_requests_gives_for_each_what_it_gives_alone() {
    let (Loaded { model, tokenizer, .. }, expected) = model();
    let (model, tokenizer) = (model.as_ref(), tokenizer.unwrap());
    let ids = ids(&expected["prompts"][4]["ids"]);
    let hot = Sampling { temperature: 1.0, ..Sampling::default() };
    let base = GenerateOptions { max_tokens: 20, sampling: hot, seed: 3, ..GenerateOptions::default() };
    // the requests end at different steps: by length, by a frequent token, by a stop text
    let penalty = RepetitionPenalty { penalty: 1.5, context_size: 8 };
    let requests = [
        Request::new(&ids[..1], base.clone()),
        Request::new(
            &ids[10..75],
            GenerateOptions { seed: 4, stop_token_ids: vec![264], logprobs: Some(2), ..base.clone() },
        ),
        Request::new(&ids[..200], GenerateOptions { sampling: Sampling::default(), logprobs: Some(0), ..base.clone() }),
        Request::new(&ids[50..53], GenerateOptions { seed: 6, repetition_penalty: penalty, ..base.clone() }),
        Request::new(
            &ids[..40],
            GenerateOptions { seed: 7, stop: vec![" ".into(), "e".into()], max_tokens: 30, ..base.clone() },
        ),
        Request::new(&ids[..9], GenerateOptions { max_tokens: 0, ..base.clone() }),
    ];
    let mut texts = vec![String::new(); requests.len()];
    let together = generate_batch(model, Some(&tokenizer), &requests, &mut |index, token| {
        texts[index] += &token.text;
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    for (index, (request, batched)) in requests.iter().zip(&together).enumerate() {
        let alone = generate(model, Some(&tokenizer), &request.prompt, &request.options).unwrap();
        assert_eq!((&batched.tokens, &batched.text), (&alone.tokens, &alone.text), "request {index}");
        assert_eq!(batched.finish_reason, alone.finish_reason, "request {index}");
        assert_eq!((batched.prompt_tokens, &texts[index]), (request.prompt.len(), &batched.text));
        assert_eq!(batched.logprobs.len(), alone.logprobs.len());
        for (a, b) in batched.logprobs.iter().zip(&alone.logprobs) {
            assert!(a.token == b.token && (a.logprob - b.logprob).abs() < 1e-4, "{a:?} {b:?}");
        }
    }
    let reasons: Vec<_> = together.iter().map(|made| made.finish_reason).collect();
    assert!(
        reasons.contains(&Some(FinishReason::Stop)) && reasons.contains(&Some(FinishReason::Length)),
        "{reasons:?}"
    );
    let none = generate_batch(model, None, &[], &mut |_, _| Ok(ControlFlow::Continue(()))).unwrap_err();
    assert!(none.to_string().contains("there are no requests"), "{none}");
}

#[test]
fn a_sequence_that_joins_or_leaves_a_running_batch_changes_no_other() {
    let (Loaded { model, tokenizer, .. }, expected) = model();
    let (model, tokenizer) = (std::sync::Arc::<dyn LanguageModel>::from(model), tokenizer.unwrap());
    let ids = ids(&expected["prompts"][4]["ids"]);
    let options = GenerateOptions { max_tokens: 12, ..GenerateOptions::default() };
    let requests = [&ids[..30], &ids[60..70], &ids[5..50]].map(|prompt| Request::new(prompt, options.clone()));
    let mut batch = GenerationBatch::new(model.clone(), Some(&tokenizer));
    let first = batch.add(&requests[0]).unwrap();
    batch.step().unwrap();
    let (second, third) = (batch.add(&requests[1]).unwrap(), batch.add(&requests[2]).unwrap());
    batch.step().unwrap();
    let stopped = batch.remove(first).unwrap();
    assert_eq!((stopped.tokens.len(), stopped.finish_reason), (2, None));
    assert!(batch.add(&Request::new([9_999_999], options.clone())).is_err());
    while !batch.is_empty() {
        batch.step().unwrap();
    }
    for (id, request) in [(second, &requests[1]), (third, &requests[2])] {
        let alone = generate(model.clone(), Some(&tokenizer), &request.prompt, &options).unwrap();
        assert_eq!(batch.remove(id).unwrap().tokens, alone.tokens);
    }
    assert!(batch.step().is_err() && batch.remove(second).is_none());
}

#[test]
fn a_session_of_a_shared_model_moves_to_another_thread() {
    let (Loaded { model, tokenizer, .. }, expected) = model();
    let model = std::sync::Arc::<dyn LanguageModel>::from(model);
    let prompt = ids(&expected["prompts"][3]["ids"]);
    let options = GenerateOptions { max_tokens: 4, ..GenerateOptions::default() };
    let here = generate(model.clone(), tokenizer.as_ref(), &prompt, &options).unwrap();
    let mut session = Session::new(model).unwrap();
    let there = std::thread::spawn(move || session.generate(tokenizer.as_ref(), &prompt, &options).unwrap());
    assert_eq!(there.join().unwrap().tokens, here.tokens);
}

#[test]
fn a_saved_model_has_the_same_bits_and_the_same_configuration() {
    let (Loaded { model, tokenizer, config }, _) = model();
    let folder = tempfile::tempdir().unwrap();
    save(model.as_ref(), &config, tokenizer.as_ref(), folder.path()).unwrap();
    let again = load(folder.path(), &Device::cpu()).unwrap();
    assert_eq!(again.config.json(), config.json());
    let all = |model: &dyn LanguageModel| {
        let mut all = Vec::new();
        model.visit("", &mut |name, tensor| all.push((name, tensor.to_bytes().unwrap())));
        all
    };
    assert!(all(again.model.as_ref()) == all(model.as_ref()));
    assert_eq!(parameter_count(model.as_ref()), 335_692);
    let written = safetensors::read(folder.path().join("model.safetensors")).unwrap();
    assert_eq!(written.metadata()["format"], "mlx");
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"] {
        assert!(folder.path().join(name).exists(), "{name}");
    }
    let text = "don't 日本 <|im_start|>";
    assert_eq!(again.tokenizer.unwrap().encode(text).unwrap(), tokenizer.unwrap().encode(text).unwrap());
}

/// The model of the fixture as transformers saves it: `W` as `W - 1` in most norms, filters `[C, 1, K]`, a part too many.
fn save_as_transformers_does(model: &dyn LanguageModel, folder: &std::path::Path) {
    let mut tensors = vec![("mtp.fc.weight".to_owned(), Tensor::full([2], 1.0, &Device::cpu()).unwrap())];
    model.visit("", &mut |name, tensor| {
        let theirs =
            name.replace("language_model.model.", "model.language_model.").replace("language_model.lm_", "lm_");
        let tensor = match tensor.shape().dims() {
            &[channels, taps, 1] => tensor.reshape([channels, 1, taps]).unwrap(),
            _ if name.ends_with("norm.weight") && !name.contains("linear_attn") => {
                let less: Vec<f32> = tensor.to_vec::<f32>().unwrap().iter().map(|w| w - 1.0).collect();
                Tensor::from_slice(&less, tensor.shape(), &Device::cpu()).unwrap()
            }
            _ => tensor.clone(),
        };
        tensors.push((theirs, tensor));
    });
    let tensors: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    safetensors::write(folder.join("model.safetensors"), &tensors, &[("format".into(), "pt".into())]).unwrap();
    std::fs::copy(fixture("models/qwen3_5-f32/config.json"), folder.join("config.json")).unwrap();
}

#[test]
fn the_layout_of_transformers_gives_the_same_model() {
    let (Loaded { model, .. }, expected) = model();
    let folder = tempfile::tempdir().unwrap();
    save_as_transformers_does(model.as_ref(), folder.path());
    let again = load(folder.path(), &Device::cpu()).unwrap();
    let ids = ids(&expected["prompts"][3]["ids"]);
    let [a, b] = [&model, &again.model].map(|m| prefill(m.as_ref(), &ids, 65).to_vec::<f32>().unwrap());
    assert!(worst(&a, &b) < 1e-4);
    assert_eq!(parameter_count(again.model.as_ref()), parameter_count(model.as_ref()));
}
