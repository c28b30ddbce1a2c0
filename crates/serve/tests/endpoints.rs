//! Answers of each endpoint: whole and streamed ones agree, and hold what was asked for.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use alluvium_core::Device;
use alluvium_lm::load;
use alluvium_lm::perplexity::nll;
use alluvium_serve::AdaptedModel;
use common::{Running, model};
use serde_json::{Value, json};
use std::io::{Read, Write};

const BRIEF: &str = "The gated delta rule";

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "add", "parameters": {
            "type": "object", "required": ["a"], "additionalProperties": false,
            "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        }}},
        {"type": "function", "function": {"name": "stop", "parameters": {
            "type": "object", "properties": {}, "additionalProperties": false,
        }}},
    ])
}

fn schema() -> Value {
    json!({
        "type": "object", "required": ["color", "sizes"], "additionalProperties": false,
        "properties": {
            "color": {"enum": ["red", "green"]},
            "sizes": {"type": "array", "items": {"$ref": "#/$defs/size"}, "minItems": 1, "maxItems": 3},
        },
        "$defs": {"size": {"type": "integer", "minimum": 1, "maximum": 20}},
    })
}

#[test]
fn an_answer_in_a_schema_is_json_that_it_describes() {
    let server = Running::start(|options| options.defaults.max_tokens = 200);
    for seed in 0..4 {
        let mut body = json!({
            "messages": user("Describe it"), "temperature": 1.5, "seed": seed,
            "response_format": {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema()}},
            "chat_template_kwargs": {"enable_thinking": false},
        });
        let (status, answer) = server.post("/v1/chat/completions", &body);
        assert_eq!((status, &answer["choices"][0]["finish_reason"]), (200, &json!("stop")), "{answer}");
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(value["color"] == "red" || value["color"] == "green", "{value}");
        assert!(value["sizes"].as_array().unwrap().iter().all(|size| (1..=20).contains(&size.as_i64().unwrap())));
        body["stream"] = true.into();
        let chunks = server.stream("/v1/chat/completions", &body);
        let streamed: String =
            chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(streamed, text);
    }
    let body = json!({
        "prompt": "x", "response_format": {"type": "grammar", "syntax": "regex", "definition": "(yes|no)!{2}"},
    });
    let text = server.post("/v1/completions", &body).1["choices"][0]["text"].as_str().unwrap().to_owned();
    assert!(text == "yes!!" || text == "no!!", "{text}");
    let body =
        json!({"prompt": "x", "response_format": {"type": "grammar", "syntax": "lark", "definition": "start: ["}});
    let (status, answer) = server.post("/v1/completions", &body);
    assert!(status == 400 && answer["error"]["message"].as_str().unwrap().starts_with("grammar: "), "{answer}");
}

#[test]
fn a_tool_that_must_be_called_is_called_in_every_api() {
    let server = Running::start(|options| options.defaults.max_tokens = 200);
    let mut chat = json!({
        "messages": user("Add"), "tools": tools(), "tool_choice": "required",
        "chat_template_kwargs": {"enable_thinking": false},
    });
    let (status, answer) = server.post("/v1/chat/completions", &chat);
    assert_eq!((status, &answer["choices"][0]["finish_reason"]), (200, &json!("tool_calls")), "{answer}");
    let call = &answer["choices"][0]["message"]["tool_calls"][0];
    assert!(call["function"]["name"] == "add" || call["function"]["name"] == "stop", "{call}");
    chat["tool_choice"] = json!({"type": "function", "function": {"name": "add"}});
    let answer = server.post("/v1/chat/completions", &chat).1;
    let call = &answer["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "add");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!((0..=9).contains(&arguments["a"].as_i64().unwrap()));
    chat["stream"] = true.into();
    let chunks = server.stream("/v1/chat/completions", &chat);
    let streamed = chunks.iter().find_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0)).unwrap();
    assert_eq!(streamed["function"], call["function"]);

    let tool = json!({"name": "add", "input_schema": tools()[0]["function"]["parameters"]});
    let mut body = json!({
        "messages": user("Add"), "tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": 200,
        "thinking": {"type": "disabled"},
    });
    let answer = server.post("/v1/messages", &body).1;
    assert_eq!(answer["stop_reason"], "tool_use", "{answer}");
    let block = &answer["content"][0];
    assert!(block["type"] == "tool_use" && block["name"] == "add" && block["input"]["a"].is_i64(), "{block}");
    body["stream"] = true.into();
    let events = server.events("/v1/messages", &body);
    let parts = events.iter().filter_map(|(_, data)| data["delta"]["partial_json"].as_str());
    let input: Value = serde_json::from_str(&parts.collect::<String>()).unwrap();
    assert_eq!(input, block["input"]);

    let function = &tools()[0]["function"];
    let tool = json!({"type": "function", "name": "add", "parameters": function["parameters"]});
    let mut body = json!({"input": "<think>\n\n</think>", "tools": [tool], "tool_choice": "required"});
    let answer = server.post("/v1/responses", &body).1;
    let item = &answer["output"][0];
    assert!(item["type"] == "function_call" && item["name"] == "add", "{answer}");
    body["stream"] = true.into();
    let events = server.events("/v1/responses", &body);
    let last = &events.last().unwrap().1["response"];
    assert_eq!(last["output"][0]["arguments"], item["arguments"]);
}

#[test]
fn messages_are_the_same_whole_and_streamed() {
    let server = Running::start(|_| ());
    let mut body = json!({
        "model": "tiny", "system": [{"type": "text", "text": "Be brief."}], "max_tokens": 20,
        "messages": [
            {"role": "user", "content": BRIEF},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "so", "signature": ""},
                {"type": "text", "text": "Let me see."}, {"type": "tool_use", "id": "t1", "name": "f", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "12"}]},
                {"type": "text", "text": "Go on"},
            ]},
        ],
    });
    let (status, answer) = server.post("/v1/messages", &body);
    assert_eq!((status, &answer["type"], &answer["stop_reason"]), (200, &json!("message"), &json!("max_tokens")));
    let count = server.post("/v1/messages/count_tokens", &body).1["input_tokens"].as_u64().unwrap();
    assert_eq!(answer["usage"]["input_tokens"].as_u64().unwrap(), count);
    assert_eq!(answer["usage"]["output_tokens"], 20);
    let text = |kind: &str| -> String {
        let blocks = answer["content"].as_array().unwrap().iter();
        blocks.filter_map(|block| block[kind].as_str()).collect()
    };
    body["stream"] = true.into();
    let events = server.events("/v1/messages", &body);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        (names[0], names[names.len() - 2], names[names.len() - 1]),
        ("message_start", "message_delta", "message_stop")
    );
    let streamed =
        |kind: &str| -> String { events.iter().filter_map(|(_, data)| data["delta"][kind].as_str()).collect() };
    assert_eq!((streamed("text"), streamed("thinking")), (text("text"), text("thinking")));
    let opened = names.iter().filter(|name| **name == "content_block_start").count();
    assert!(opened > 0 && opened == names.iter().filter(|name| **name == "content_block_stop").count());

    body["stream"] = false.into();
    body["stop_sequences"] = json!([text("text").chars().take(3).collect::<String>()]);
    let stopped = server.post("/v1/messages", &body).1;
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&json!("stop_sequence"), &body["stop_sequences"][0])
    );
    let (status, error) = server.post("/v1/messages", &json!({"messages": []}));
    assert_eq!(
        (status, &error["type"], &error["error"]["type"]),
        (400, &json!("error"), &json!("invalid_request_error"))
    );
}

#[test]
fn responses_are_the_same_whole_and_streamed() {
    let server = Running::start(|_| ());
    let mut body = json!({
        "instructions": "Be brief.", "max_output_tokens": 20, "metadata": {"of": "tests"},
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": BRIEF}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"a\": 1}"},
            {"type": "function_call_output", "call_id": "c1", "output": "12"},
            {"type": "message", "role": "user", "content": "Go on"},
        ],
    });
    let (status, answer) = server.post("/v1/responses", &body);
    assert_eq!(
        (status, &answer["object"], &answer["status"]),
        (200, &json!("response"), &json!("incomplete")),
        "{answer}"
    );
    assert_eq!(answer["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!((&answer["metadata"]["of"], &answer["usage"]["output_tokens"]), (&json!("tests"), &json!(20)));
    body["stream"] = true.into();
    let events = server.events("/v1/responses", &body);
    let numbers: Vec<u64> = events.iter().map(|(_, data)| data["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
    assert_eq!(events[0].0, "response.created");
    let (name, last) = events.last().unwrap();
    let tokens = |response: &Value| response["usage"]["total_tokens"].clone();
    assert_eq!((name.as_str(), tokens(&last["response"])), ("response.incomplete", tokens(&answer)));
    let texts = |output: &Value| -> Vec<String> {
        let text = |item: &Value| item["content"][0]["text"].as_str().unwrap().to_owned();
        output.as_array().unwrap().iter().map(text).collect()
    };
    assert_eq!(texts(&last["response"]["output"]), texts(&answer["output"]));
    let deltas: String = events.iter().filter_map(|(_, data)| data["delta"].as_str()).collect();
    assert_eq!(deltas, texts(&answer["output"]).concat());
}

#[test]
fn embeddings_have_length_one_and_are_bit_identical_in_any_company() {
    let server = Running::start(|_| ());
    let texts = [BRIEF, "a", "writes a correction to memory, again and again and again", "Hello, world"];
    let all = server.post("/v1/embeddings", &json!({"input": texts, "model": "any"})).1;
    for (n, text) in texts.iter().enumerate() {
        let alone = server.post("/v1/embeddings", &json!({"input": text})).1;
        assert_eq!(alone["data"][0]["embedding"], all["data"][n]["embedding"]);
        let of = |value: &Value| -> Vec<f64> {
            value["data"][0]["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let norm: f64 = of(&alone).iter().map(|x| x * x).sum();
        assert!((norm - 1.0).abs() < 1e-5, "{norm}");
        let short = server.post("/v1/embeddings", &json!({"input": text, "dimensions": 8})).1;
        let (short, long) = (of(&short), of(&alone));
        let scale: f64 = long[..8].iter().map(|x| x * x).sum::<f64>().sqrt();
        assert!(short.len() == 8 && short.iter().zip(&long).all(|(a, b)| (a * scale - b).abs() < 1e-6));
    }
    assert_ne!(all["data"][0]["embedding"], all["data"][1]["embedding"]);
    let packed = server.post("/v1/embeddings", &json!({"input": BRIEF, "encoding_format": "base64"})).1;
    let size = all["data"][0]["embedding"].as_array().unwrap().len();
    assert_eq!(packed["data"][0]["embedding"].as_str().unwrap().len(), (4 * size).div_ceil(3) * 4);
}

#[test]
fn an_echoed_prompt_comes_with_the_log_probabilities_of_its_tokens() {
    let server = Running::start(|_| ());
    let loaded = load(&model(), &Device::cpu()).unwrap();
    let tokenizer = loaded.tokenizer.unwrap();
    for text in [BRIEF.to_owned(), "The delta rule writes a correction to memory. ".repeat(12)] {
        let tokens = tokenizer.encode(&text).unwrap();
        let body = json!({"prompt": tokens, "echo": true, "logprobs": 2, "max_tokens": 1});
        let answer = server.post("/v1/completions", &body).1;
        let choice = &answer["choices"][0];
        assert!(choice["text"].as_str().unwrap().starts_with(&text), "{choice}");
        let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        assert!(logprobs.len() == tokens.len() + 1 && logprobs[0].is_null());
        // the same products in other pieces: roundings of f32 in logits of up to 20
        for (ours, nll) in logprobs[1..].iter().zip(nll(loaded.model.as_ref(), &tokens).unwrap()) {
            assert!((ours.as_f64().unwrap() + nll).abs() < 1e-4, "{ours} {nll}");
        }
        let none = server.post("/v1/completions", &json!({"prompt": text, "echo": true, "max_tokens": 0})).1;
        assert_eq!(none["choices"][0]["text"], text);
    }
}

#[test]
fn a_bias_decides_tokens() {
    let server = Running::start(|_| ());
    let body = json!({"prompt": "a", "logit_bias": {"100": 100}, "max_tokens": 4, "logprobs": 0});
    let answer = server.post("/v1/completions", &body).1;
    let tokens = answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
    let token = load(&model(), &Device::cpu()).unwrap().tokenizer.unwrap().decode(&[100]).unwrap();
    assert!(tokens.len() == 4 && tokens.iter().all(|own| *own == token), "{answer}");
}

#[test]
fn an_adapter_is_a_model_by_its_name() {
    // another model in its place shows which one answers
    let other = load(&model().with_file_name("qwen3_5-bf16"), &Device::cpu()).unwrap().model.into();
    let server = Running::start(|options| {
        options.adapters.push(AdaptedModel { name: "poet".to_owned(), model: other });
    });
    let names: Vec<Value> = {
        let (_, list) = server.send("GET", "/v1/models", "", "");
        let list: Value = serde_json::from_str(&list).unwrap();
        list["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect()
    };
    assert_eq!(names, ["tiny", "poet"]);
    let ask = |model: &str| server.post("/v1/completions", &json!({"model": model, "prompt": BRIEF, "logprobs": 0}));
    let (plain, poet) = (ask("tiny").1, ask("poet").1);
    assert_eq!((&plain["model"], &poet["model"]), (&json!("tiny"), &json!("poet")));
    assert_ne!(plain["choices"][0]["logprobs"], poet["choices"][0]["logprobs"]);
    let (status, error) = ask("pirate");
    assert_eq!((status, &error["error"]["code"]), (404, &json!("model_not_found")));
}

#[test]
fn keys_of_both_kinds_are_taken_and_errors_have_the_form_of_the_api() {
    let server = Running::start(|options| options.api_key = Some("secret".to_owned()));
    let ask = |headers: &str| {
        let mut stream = std::net::TcpStream::connect(server.address).unwrap();
        write!(stream, "GET /v1/messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("x-api-key: secret\r\n").starts_with("HTTP/1.1 405"));
    for wrong in ["", "x-api-key: secre\r\n", "Authorization: Bearer wrong\r\n", "Authorization: secret\r\n"] {
        let answer = ask(wrong);
        assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("{\"type\":\"error\""), "{answer}");
        assert!(!answer.contains("secret"));
    }
}

#[test]
fn heads_and_bodies_are_bounded() {
    let server = Running::start(|_| ());
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    write!(stream, "GET /health HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "a".repeat(400_000)).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 431");
    let body = json!({"prompt": "a".repeat(17 << 20)}).to_string();
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    write!(stream, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}
