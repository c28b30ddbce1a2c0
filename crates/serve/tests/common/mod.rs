//! A server for tests, and a client of raw HTTP.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::panic)]

use alluvium_core::Device;
use alluvium_lm::engine::EngineOptions;
use alluvium_lm::{GenerateOptions, load};
use alluvium_ops::Sampling;
use alluvium_serve::{Limits, ServeOptions, router, serve};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models/qwen3_5-f32")
}

pub fn defaults() -> GenerateOptions {
    let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
    GenerateOptions { max_tokens: 24, sampling, ..GenerateOptions::default() }
}

/// A template that knows tools and takes messages without content.
pub const TEMPLATE: &str = "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}\
    {% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}\
    {% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\
    {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}";

/// A running server. Dropping it shuts it down.
pub struct Running {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    pub fn start(change: impl FnOnce(&mut ServeOptions)) -> Self {
        let mut options = ServeOptions {
            model_name: "tiny".to_owned(),
            adapters: Vec::new(),
            api_key: None,
            engine: EngineOptions::default(),
            defaults: defaults(),
            max_context: 4096,
            limits: Limits::default(),
        };
        change(&mut options);
        let limits = options.limits;
        let (stop, stopped) = oneshot::channel();
        let (sender, address) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let mut loaded = load(&model(), &Device::cpu()).unwrap();
                loaded.tokenizer = loaded.tokenizer.map(|tokenizer| tokenizer.with_chat_template("test", TEMPLATE));
                let router = router(loaded, options).unwrap();
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send(listener.local_addr().unwrap()).unwrap();
                serve(listener, router, limits, async { drop(stopped.await) }).await.unwrap();
            });
        });
        Running { address: address.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }

    /// Sends a request and reads the answer to its end: the status, and the body without its chunks' lengths.
    pub fn send(&self, method: &str, path: &str, key: &str, body: &str) -> (u16, String) {
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

    pub fn open(&self, method: &str, path: &str, key: &str, body: &str) -> TcpStream {
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

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, body) = self.send("POST", path, "", &body.to_string());
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    /// The chunks of a stream.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, text) = self.send("POST", path, "", &body.to_string());
        assert_eq!(status, 200, "{text}");
        let mut lines: Vec<&str> = text.split("\n\n").filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.pop(), Some("data: [DONE]"));
        lines.iter().map(|line| serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }

    /// The names and data of named events.
    pub fn events(&self, path: &str, body: &Value) -> Vec<(String, Value)> {
        let (status, text) = self.send("POST", path, "", &body.to_string());
        assert_eq!(status, 200, "{text}");
        let event = |text: &str| {
            let (name, data) = text.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(data["type"], name);
            (name.to_owned(), data)
        };
        text.split("\n\n").filter(|event| !event.is_empty()).map(event).collect()
    }

    pub fn metric(&self, name: &str) -> u64 {
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

pub fn chat(text: &str) -> Value {
    json!({"model": "any", "messages": [{"role": "user", "content": text}]})
}
