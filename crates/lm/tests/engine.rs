//! The engine gives each request, bit for bit, what it gets alone, whatever runs beside it and whatever was kept.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::Device;
use alluvium_core::gpu::Gpu;
use alluvium_lm::engine::{Engine, EngineOptions, Event, EventSink, Refusal};
use alluvium_lm::{
    GenerateOptions, Generation, LanguageModel, LoadOptions, Request, Session, TokenLogprob, generate, load, load_with,
};
use alluvium_ops::Sampling;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models")
}

fn model(name: &str) -> Arc<dyn LanguageModel> {
    load(&fixtures().join(name), &Device::cpu()).unwrap().model.into()
}

fn options(max_tokens: usize, seed: u64) -> GenerateOptions {
    let sampling = Sampling { temperature: 0.9, top_k: 40, top_p: 0.95, min_p: 0.0 };
    GenerateOptions { max_tokens, sampling, seed, logprobs: Some(2), ..GenerateOptions::default() }
}

/// A prompt of ids below 360; equal seeds give prompts of which one is the beginning of the other.
fn prompt(seed: u32, length: u32) -> Vec<u32> {
    (0..length).map(|n| (n * n * 31 + n * 7 + seed * 101 + n * seed) % 360).collect()
}

fn submit(engine: &Engine, request: &Request) -> Receiver<Event> {
    let (sender, events) = channel();
    engine.submit(request.clone(), Box::new(sender)).unwrap();
    events
}

/// The completion, the tokens of the prompt that were kept and the generated tokens as they came.
fn finish(events: &Receiver<Event>) -> (Generation, usize) {
    let (mut reused, mut tokens) = (None, Vec::new());
    loop {
        match events.recv_timeout(PATIENCE).unwrap() {
            Event::Started { reused_tokens } => reused = Some(reused_tokens),
            Event::Token(token) => tokens.push(token.token),
            Event::Finished(generation) => {
                assert_eq!(generation.tokens, tokens);
                return (generation, reused.unwrap());
            }
            Event::Failed(error) => panic!("{error}"),
            Event::Embedded(_) => panic!("an embedding came"),
        }
    }
}

/// Requests with lengths around the chunks of the delta rule, and beginnings that several share; and what each gives
/// alone.
fn requests(model: &dyn LanguageModel) -> Vec<(Request, Generation)> {
    let lengths = [(1, 5), (2, 64), (2, 65), (2, 200), (2, 311), (3, 129), (2, 700), (4, 1)];
    let request = |(n, &(seed, length)): (usize, &(u32, u32))| {
        let request = Request::new(prompt(seed, length), options(12 + n, n as u64));
        let alone = generate(model, None, &request.prompt, &request.options).unwrap();
        (request, alone)
    };
    lengths.iter().enumerate().map(request).collect()
}

/// Equal tokens and bit-identical log-probabilities.
fn assert_same(ours: &Generation, alone: &Generation, what: &str) {
    assert_eq!((&ours.tokens, ours.finish_reason), (&alone.tokens, alone.finish_reason), "{what}");
    assert_eq!(ours.logprobs.len(), ours.tokens.len());
    let bits = |generation: &Generation| -> Vec<Vec<(u32, u32)>> {
        let one = |token: &TokenLogprob| {
            let all = std::iter::once((token.token, token.logprob)).chain(token.top_logprobs.iter().copied());
            all.map(|(token, logprob)| (token, logprob.to_bits())).collect()
        };
        generation.logprobs.iter().map(one).collect()
    };
    assert_eq!(bits(ours), bits(alone), "{what}");
}

/// Dense in three dtypes, packed in several ways, without linear layers.
const MODELS: [&str; 7] = [
    "qwen3_5-f32",
    "qwen3_5-bf16",
    "qwen3_5-bf16-q4g64",
    "qwen3_5-bf16-q8g64",
    "qwen3_5-mxfp4",
    "qwen3-f32",
    "llama-q4g64",
];

#[test]
fn a_completion_after_a_kept_prefix_is_that_from_the_start() {
    for name in MODELS {
        let model = model(name);
        let requests = requests(model.as_ref());
        let engine = Engine::new(model, None, EngineOptions { max_sequences: 1, ..EngineOptions::default() });
        for round in 0..2 {
            for (request, alone) in &requests {
                let (ours, reused) = finish(&submit(&engine, request));
                assert_same(&ours, alone, name);
                assert_eq!(ours.reused_tokens, reused);
                let most = request.prompt.len().saturating_sub(33) / 64 * 64;
                assert!(reused == most || round == 0, "{name}: {reused} of {most} tokens were kept");
            }
        }
    }
}

#[test]
fn requests_that_run_together_get_what_they_get_alone() {
    for name in MODELS {
        let model = model(name);
        let requests = requests(model.as_ref());
        let engine = Engine::new(model, None, EngineOptions { max_sequences: 5, ..EngineOptions::default() });
        for _ in 0..3 {
            let events: Vec<_> = requests.iter().map(|(request, _)| submit(&engine, request)).collect();
            for (events, (_, alone)) in events.iter().zip(&requests) {
                let (ours, _) = finish(events);
                assert_same(&ours, alone, name);
            }
        }
        let stats = engine.stats();
        assert_eq!((stats.finished, stats.failed), (24, 0));
        assert!(stats.reused_tokens > 0 && stats.prefix_cache_bytes > 0);
    }
}

#[test]
fn long_prompts_of_models_with_experts_give_the_same_tokens() {
    let model = model("qwen3_next-q4g64");
    let requests = requests(model.as_ref());
    let engine = Engine::new(model, None, EngineOptions { max_sequences: 5, ..EngineOptions::default() });
    let events: Vec<_> = requests.iter().map(|(request, _)| submit(&engine, request)).collect();
    for (events, (_, alone)) in events.iter().zip(&requests) {
        let (ours, _) = finish(events);
        assert_eq!(ours.tokens, alone.tokens);
        // an expert gets more or fewer rows of a longer or shorter piece, and sums them in another order
        for (ours, alone) in ours.logprobs.iter().zip(&alone.logprobs) {
            assert!((ours.logprob - alone.logprob).abs() < 1e-4, "{ours:?}, {alone:?}");
        }
    }
}

/// Short prompts, which each fit a piece, and long enough completions that all run at the same time.
fn short_requests(count: u32) -> Vec<Request> {
    (0..count).map(|n| Request::new(prompt(n, 3 + n % 40), options(40, u64::from(n)))).collect()
}

#[test]
fn a_request_beside_31_others_is_bit_identical_with_experts_too() {
    for name in ["qwen3_5-f32", "qwen3_5-bf16-q4g64", "qwen3_5_moe-f32", "qwen3_5_moe-bf16-q4g64"] {
        let model = model(name);
        let requests = short_requests(32);
        let engine = Engine::new(model.clone(), None, EngineOptions { max_sequences: 32, ..EngineOptions::default() });
        let events: Vec<_> = requests.iter().map(|request| submit(&engine, request)).collect();
        for (request, events) in requests.iter().zip(&events) {
            let alone = generate(model.as_ref(), None, &request.prompt, &request.options).unwrap();
            assert_same(&finish(events).0, &alone, name);
        }
    }
}

#[test]
fn the_bits_of_a_prompt_do_not_depend_on_where_it_is_cut() {
    for name in ["qwen3_5-f32", "qwen3_5-bf16", "qwen3_5-bf16-q3g32", "qwen3_5-nvfp4"] {
        let model = model(name);
        let logits = |tokens: &[u32], step| {
            let mut session = Session::new(model.as_ref()).unwrap().with_prefill_step_size(NonZeroUsize::new(step));
            session.prefill(tokens).unwrap();
            let bits = |x: &f32| x.to_bits();
            session.logits().unwrap().to_floats().unwrap().iter().map(bits).collect::<Vec<_>>()
        };
        for length in [33, 65, 97, 161, 200, 641] {
            let tokens = prompt(length, length);
            let whole = logits(&tokens, 1024);
            for step in [64, 128, 512] {
                assert!(logits(&tokens, step) == whole, "{name}: {length} tokens by {step}");
            }
        }
    }
}

#[test]
fn on_a_gpu_a_request_is_bit_identical_beside_others_and_after_a_kept_prefix() {
    let Some(gpu) = Gpu::builder().open_for_test().unwrap() else { return };
    for name in ["qwen3_5-f32", "qwen3_5-f16", "qwen3_5-bf16-q4g64"] {
        // as programs load it: with the projections of one input side by side
        let load_options = LoadOptions::new(&Device::Gpu(gpu.clone())).for_generation();
        let model: Arc<dyn LanguageModel> = load_with(&fixtures().join(name), &load_options).unwrap().model.into();
        let mut requests = short_requests(12);
        requests.extend([270, 300, 600].map(|length| Request::new(prompt(9, length), options(20, 1))));
        let alone = EngineOptions { max_sequences: 1, prefix_cache_bytes: 0, ..EngineOptions::default() };
        let engine = Engine::new(model.clone(), None, alone);
        let alone: Vec<Generation> = requests.iter().map(|request| finish(&submit(&engine, request)).0).collect();
        let engine = Engine::new(model, None, EngineOptions { max_sequences: 15, ..EngineOptions::default() });
        let mut reused = 0;
        for _ in 0..2 {
            let events: Vec<_> = requests.iter().map(|request| submit(&engine, request)).collect();
            for (events, alone) in events.iter().zip(&alone) {
                let (ours, kept) = finish(events);
                reused += kept;
                assert_same(&ours, alone, name);
            }
        }
        assert!(reused >= 256, "{reused}");
    }
}

#[test]
fn without_bytes_nothing_is_kept_and_with_few_the_oldest_goes() {
    let model = model("qwen3_5-f32");
    let request = |seed| Request::new(prompt(seed, 100), options(2, 0));
    let none = Engine::new(model.clone(), None, EngineOptions { prefix_cache_bytes: 0, ..EngineOptions::default() });
    for _ in 0..2 {
        assert_eq!(finish(&submit(&none, &request(1))).1, 0);
    }
    let whole = Engine::new(model.clone(), None, EngineOptions::default());
    finish(&submit(&whole, &request(1)));
    while whole.stats().running > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let one = whole.stats().prefix_cache_bytes;
    assert!(one > 0);
    let few = EngineOptions { prefix_cache_bytes: 2 * one, ..EngineOptions::default() };
    let few = Engine::new(model, None, few);
    for (seed, reused) in [(1, 0), (2, 0), (1, 64), (3, 0), (1, 64), (2, 0)] {
        assert_eq!(finish(&submit(&few, &request(seed))).1, reused, "{seed}");
    }
}

#[test]
fn a_long_prompt_lets_others_go_on() {
    let engine = Engine::new(model("qwen3_5-f32"), None, EngineOptions::default());
    let short = submit(&engine, &Request::new(prompt(1, 3), options(200, 1)));
    assert!(matches!(short.recv_timeout(PATIENCE).unwrap(), Event::Started { .. }));
    let long = submit(&engine, &Request::new(prompt(2, 2000), options(1, 1)));
    // when the long prompt was read, the short one has got a token for each of its pieces but for the first
    while !matches!(long.recv_timeout(PATIENCE).unwrap(), Event::Started { .. }) {}
    let tokens = short.try_iter().filter(|event| matches!(event, Event::Token(_))).count();
    assert!(tokens >= 2000 / 64 - 3, "{tokens}");
}

/// Cancels after this many tokens.
struct Impatient {
    tokens: usize,
    ended: std::sync::mpsc::Sender<()>,
}

impl EventSink for Impatient {
    fn send(&mut self, event: Event) -> ControlFlow<()> {
        if matches!(event, Event::Token(_)) {
            self.tokens -= 1;
        }
        if self.tokens == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Drop for Impatient {
    fn drop(&mut self) {
        let _ = self.ended.send(());
    }
}

#[test]
fn who_hangs_up_makes_room_and_the_others_are_not_touched() {
    let model = model("qwen3_5-f32");
    let kept = Request::new(prompt(5, 70), options(40, 3));
    let alone = generate(model.as_ref(), None, &kept.prompt, &kept.options).unwrap();
    let engine = Engine::new(model, None, EngineOptions { max_sequences: 3, ..EngineOptions::default() });
    let events = submit(&engine, &kept);
    let (ended, was_ended) = channel();
    for n in 0..6 {
        let sink = Impatient { tokens: 1 + n, ended: ended.clone() };
        let request = Request::new(prompt(n as u32, 30), options(10_000, 0));
        engine.submit(request, Box::new(sink)).unwrap();
    }
    for _ in 0..6 {
        was_ended.recv_timeout(PATIENCE).unwrap();
    }
    assert_eq!(finish(&events).0.tokens, alone.tokens);
    let stats = engine.stats();
    assert_eq!((stats.cancelled, stats.finished), (6, 1));
}

#[test]
fn wrong_requests_fail_alone_and_a_full_queue_refuses() {
    let engine = Engine::new(model("qwen3_5-f32"), None, EngineOptions { max_queue: 1, ..EngineOptions::default() });
    for (request, want) in [
        (Request::new([], options(4, 0)), "the prompt is empty"),
        (Request::new([100_000], options(4, 0)), "token 100000 is outside the vocabulary"),
    ] {
        let events = submit(&engine, &request);
        match events.recv_timeout(PATIENCE).unwrap() {
            Event::Failed(error) => assert!(error.to_string().contains(want), "{error}"),
            other => panic!("{other:?}"),
        }
    }
    let none = submit(&engine, &Request::new([1], options(0, 0)));
    assert_eq!(finish(&none).0.tokens, Vec::<u32>::new());
    // the engine takes at most one request at a time from the queue, so of many some are refused
    let mut refused = 0;
    let mut taken = Vec::new();
    for _ in 0..200 {
        let (sender, events) = channel();
        match engine.submit(Request::new(prompt(1, 50), options(3, 0)), Box::new(sender)) {
            Ok(()) => taken.push(events),
            Err(refusal) => {
                assert_eq!(refusal, Refusal::QueueFull);
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    for events in taken {
        finish(&events);
    }
}

#[test]
fn shutting_down_finishes_what_was_taken() {
    let mut engine = Engine::new(model("qwen3_5-f32"), None, EngineOptions::default());
    let events: Vec<_> = (0..12).map(|n| submit(&engine, &Request::new(prompt(n, 20), options(20, 0)))).collect();
    engine.shut_down();
    for events in &events {
        finish(events);
    }
    let (sender, _events) = channel();
    let refused = engine.submit(Request::new([1], options(1, 0)), Box::new(sender));
    assert_eq!(refused.unwrap_err(), Refusal::ShuttingDown);
}

/// Panics at the first token.
struct Panicking;

impl EventSink for Panicking {
    fn send(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Token(_) => panic!("on purpose"),
            _ => ControlFlow::Continue(()),
        }
    }
}

#[test]
fn an_engine_whose_thread_has_ended_refuses_and_drops_what_waits() {
    let engine =
        Engine::new(model("llama-q4g64"), None, EngineOptions { max_sequences: 1, ..EngineOptions::default() });
    assert!(engine.is_running());
    let request = Request::new(prompt(1, 5), options(200, 1));
    engine.submit(request.clone(), Box::new(Panicking)).unwrap();
    // it may have ended by now
    let (sender, events) = channel();
    let waits = engine.submit(request.clone(), Box::new(sender));
    assert!(matches!(waits, Ok(()) | Err(Refusal::Stopped)));
    while events.recv_timeout(PATIENCE).is_ok() {}
    assert!(!engine.is_running());
    assert_eq!(engine.submit(request, Box::new(Panicking)).unwrap_err(), Refusal::Stopped);
    assert_eq!((engine.stats().waiting, engine.stats().running), (0, 0));
}
