//! The server as a client sees it: real connections, raw HTTP.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use alluvium_core::Device;
use alluvium_lm::{Conversation, Message, generate, load};
use common::{Running, chat, defaults, model};
use serde_json::{Value, json};
use std::io::Read;
use std::time::{Duration, Instant};

/// What the library gives for a chat.
fn expected(text: &str) -> (String, usize) {
    let loaded = load(&model(), &Device::cpu()).unwrap();
    let tokenizer = loaded.tokenizer.unwrap().with_chat_template("test", common::TEMPLATE);
    let prompt = Conversation::new([Message::user(text)]).encode(&tokenizer).unwrap();
    let generation = generate(loaded.model.as_ref(), Some(&tokenizer), &prompt, &defaults()).unwrap();
    (generation.text, prompt.len())
}

#[test]
fn a_chat_gives_what_the_library_gives_whole_and_streamed() {
    let server = Running::start(|_| ());
    let (text, prompt) = expected("Hello");
    let (status, answer) = server.post("/v1/chat/completions", &chat("Hello"));
    assert_eq!((status, answer["object"].as_str().unwrap()), (200, "chat.completion"));
    let message = &answer["choices"][0]["message"];
    let joined = format!(
        "{}{}",
        message["reasoning_content"].as_str().unwrap_or_default(),
        message["content"].as_str().unwrap_or_default()
    );
    assert!(!text.is_empty() && text.replace("<think>", "").replace("</think>", "") == joined, "{text:?} {joined:?}");
    assert_eq!(answer["usage"]["prompt_tokens"], prompt);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");

    let mut request = chat("Hello");
    request["stream"] = true.into();
    request["stream_options"] = json!({"include_usage": true});
    let chunks = server.stream("/v1/chat/completions", &request);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 24);
    let part = |key: &str| -> String {
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"][key].as_str()).collect()
    };
    assert_eq!(part("reasoning_content") + &part("content"), joined);
    let reasons: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["finish_reason"]).collect();
    assert_eq!(reasons[reasons.len() - 2], "length");
}

#[test]
fn completions_take_texts_and_tokens_and_return_log_probabilities() {
    let server = Running::start(|_| ());
    let body = json!({"prompt": ["The gated", "delta rule"], "max_tokens": 5, "n": 2, "logprobs": 2, "temperature": 1, "seed": 3});
    let (status, answer) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{answer}");
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    assert_eq!(choices[3]["logprobs"]["token_logprobs"].as_array().unwrap().len(), 5);
    assert_eq!(answer["usage"]["completion_tokens"], 20);
    assert_eq!(server.post("/v1/completions", &body).1["choices"], answer["choices"], "the same seed");
    let (_, tokens) = server.post("/tokenize", &json!({"content": "The gated"}));
    let (_, back) = server.post("/detokenize", &tokens);
    assert_eq!(back["content"], "The gated");
    let by_text = server.post("/v1/completions", &json!({"prompt": "The gated", "max_tokens": 5})).1;
    let by_tokens = server.post("/v1/completions", &json!({"prompt": tokens["tokens"], "max_tokens": 5})).1;
    assert_eq!(by_text["choices"], by_tokens["choices"]);
}

#[test]
fn wrong_requests_get_a_status_and_words() {
    let server = Running::start(|options| options.max_context = 100);
    let long = "word ".repeat(300);
    let cases = [
        ("/v1/chat/completions", json!({"messages": []}), 400, "`messages` is empty"),
        ("/v1/chat/completions", json!({"message": "x"}), 400, "missing field `messages`"),
        ("/v1/chat/completions", chat(&long), 400, "the context has 100; shorten the prompt"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "temperature": 9}),
            400,
            "`temperature` is 9",
        ),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "a"}], "n": 0}), 400, "`n` is 0"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema"}}),
            400,
            "`response_format` has no schema",
        ),
        ("/v1/chat/completions", json!({"messages": [], "tool_choice": "all"}), 400, "`tool_choice` is \"all\""),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"}),
            400,
            "there are no tools",
        ),
        ("/v1/completions", json!({"prompt": [999_999]}), 400, "token 999999 is outside the vocabulary"),
        (
            "/v1/completions",
            json!({"prompt": "a", "echo": true, "stream": true, "logprobs": 1}),
            400,
            "cannot be streamed",
        ),
        ("/v1/completions", json!({"prompt": "a", "logit_bias": {"x": 1}}), 400, "`logit_bias` has x: 1"),
        ("/v1/completions", json!({"prompt": "a", "logit_bias": {"1": 101}}), 400, "with -100 to 100"),
        ("/v1/completions", json!({"prompt": vec!["a"; 65]}), 400, "65 prompts came"),
        ("/v1/embeddings", json!({"input": "a", "dimensions": 0}), 400, "`dimensions` is 0"),
        ("/v1/embeddings", json!({"input": []}), 400, "the prompt is empty"),
        ("/v1/responses", json!({"input": "a", "previous_response_id": "x"}), 400, "responses are not kept"),
        ("/v1/responses", json!({"input": [{"type": "image"}]}), 400, "an item of type image is not supported"),
        ("/v1/responses", json!({"input": []}), 400, "`messages` is empty"),
        ("/v1/messages", json!({"messages": [{"role": "user", "content": "a"}]}), 400, "`max_tokens` is missing"),
        ("/v1/messages", json!({"messages": [], "max_tokens": 3}), 400, "`messages` is empty"),
        ("/v1/nothing", json!({}), 404, "there is no such path"),
    ];
    for (path, body, status, want) in cases {
        let (got, answer) = server.post(path, &body);
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(got == status && message.contains(want), "{path} {body}: {got} {answer}");
    }
    let (status, answer) = server.send("POST", "/v1/completions", "", "{not json");
    assert!(status == 400 && answer.contains("the body is not what is expected"), "{answer}");
    let (status, answer) = server.send("GET", "/v1/completions", "", "");
    assert!(status == 405 && answer.contains("method not allowed"), "{answer}");
    assert_eq!(server.send("GET", "/v1/models/other", "", "").0, 404);
}

#[test]
fn a_key_is_asked_for_where_there_is_one() {
    let server = Running::start(|options| options.api_key = Some("secret".to_owned()));
    for (key, status) in [("", 401), ("secre", 401), ("secrets", 401), ("secret", 200)] {
        assert_eq!(server.send("GET", "/v1/models", key, "").0, status, "{key}");
    }
    assert_eq!(server.send("GET", "/health", "", "").0, 200);
    let (status, page) = server.send("GET", "/", "", "");
    assert!(status == 200 && page.contains("<title>Alluvium</title>"));
    // the page asks for nothing from elsewhere
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("//cdn"));
}

#[test]
fn a_client_that_hangs_up_cancels_its_request() {
    let server = Running::start(|options| options.max_context = 1 << 20);
    let mut request = chat("Go on");
    request["max_tokens"] = 900_000.into();
    request["stream"] = true.into();
    let mut stream = server.open("POST", "/v1/chat/completions", "", &request.to_string());
    let mut begin = [0; 64];
    stream.read_exact(&mut begin).unwrap();
    drop(stream);
    let start = Instant::now();
    while server.metric("requests_cancelled_total") == 0 {
        assert!(start.elapsed() < Duration::from_secs(30), "it goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.metric("requests_running"), 0);
}

#[test]
fn many_clients_get_their_own_answers_and_a_common_prompt_is_read_once() {
    let server = Running::start(|_| ());
    let begin = "The gated delta rule writes a correction to memory. ".repeat(8);
    let texts: Vec<String> = (0..12).map(|n| format!("{begin}Question {n}?")).collect();
    let alone: Vec<Value> = texts.iter().map(|text| server.post("/v1/chat/completions", &chat(text)).1).collect();
    assert!(server.metric("cached_prompt_tokens_total") > 0);
    std::thread::scope(|threads| {
        for (text, alone) in texts.iter().zip(&alone) {
            let server = &server;
            threads.spawn(move || {
                let (status, answer) = server.post("/v1/chat/completions", &chat(text));
                assert_eq!((status, &answer["choices"]), (200, &alone["choices"]));
            });
        }
    });
    assert_eq!(server.metric("requests_finished_total"), 24);
}
