//! The server as a client sees it: real connections, raw HTTP.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::Device;
use alluvium_lm::engine::EngineOptions;
use alluvium_lm::{Conversation, GenerateOptions, Message, generate, load};
use alluvium_ops::Sampling;
use alluvium_serve::{ServeOptions, router, serve};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/qwen3_5-f32")
}

fn defaults() -> GenerateOptions {
    let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    GenerateOptions { max_tokens: 24, sampling, ..GenerateOptions::default() }
}

/// A running server. Dropping it shuts it down.
struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(change: impl FnOnce(&mut ServeOptions)) -> Self {
        let mut options = ServeOptions {
            model_name: "tiny".to_owned(),
            api_key: None,
            engine: EngineOptions::default(),
            defaults: defaults(),
            max_context: 4096,
        };
        change(&mut options);
        let (stop, stopped) = oneshot::channel();
        let (sender, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let router = router(load(&model(), &Device::cpu()).unwrap(), options).unwrap();
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                serve(listener, router, async { drop(stopped.await) }).await.unwrap();
            });
        });
        Running { address: address.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }

    /// Sends a request and reads the answer to its end: the status, and the body without its chunks' lengths.
    fn send(&self, method: &str, path: &str, key: &str, body: &str) -> (u16, String) {
        let mut stream = self.open(method, path, key, body);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        match head.contains("chunked") {
            true => (status, body.split("\r\n").skip(1).step_by(2).collect()),
            false => (status, body.to_owned()),
        }
    }

    fn open(&self, method: &str, path: &str, key: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, body) = self.send("POST", path, "", &body.to_string());
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    /// The chunks of a stream.
    fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, text) = self.send("POST", path, "", &body.to_string());
        assert_eq!(status, 200, "{text}");
        let mut lines: Vec<&str> = text.split("\n\n").filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.pop(), Some("data: [DONE]"));
        lines.iter().map(|line| serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }

    fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.send("GET", "/metrics", "", "");
        let line = text.lines().find(|line| line.starts_with(&format!("alluvium_{name} "))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn chat(text: &str) -> Value {
    json!({"model": "any", "messages": [{"role": "user", "content": text}]})
}

/// What the library gives for a chat.
fn expected(text: &str) -> (String, usize) {
    let loaded = load(&model(), &Device::cpu()).unwrap();
    let tokenizer = loaded.tokenizer.unwrap();
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
            json!({"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}}),
            400,
            "`response_format` is not supported",
        ),
        ("/v1/completions", json!({"prompt": [999_999]}), 400, "token 999999 is outside the vocabulary"),
        ("/v1/completions", json!({"prompt": "a", "echo": true}), 400, "`echo` is not supported"),
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
