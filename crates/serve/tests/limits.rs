//! The limits of connections: heads to the byte, slow and idle clients, an engine that has ended.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use alluvium_core::{Device, Result, Tensor};
use alluvium_lm::{Batch, Cache, CacheShape, Checkpointing, LanguageModel, Weight, params};
use alluvium_serve::{AdaptedModel, Limits};
use common::{Running, chat};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tokio::net::TcpSocket;

const PATIENCE: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

fn connect(server: &Running) -> TcpStream {
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A request whose answer nobody reads, with room for little of it.
fn send_unread(server: &Running, body: &str) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut stream = runtime.block_on(async {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(server.address).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    let length = body.len();
    write!(stream, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    stream
}

/// What comes until the server closes the connection.
fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    // a reset after the answer is an end, too
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A head of this many bytes.
fn head(bytes: usize) -> String {
    let [begin, end] = ["GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Long: ", "\r\n\r\n"];
    format!("{begin}{}{end}", "a".repeat(bytes - begin.len() - end.len()))
}

#[test]
fn a_head_has_64_kib_and_not_a_byte_more_in_one_piece_or_in_many() {
    let server = Running::start(|_| ());
    for (bytes, status) in [(64 << 10, "200"), ((64 << 10) + 1, "431"), (65 << 10, "431"), (300_000, "431")] {
        for piece in [usize::MAX, 10_000] {
            let (head, mut stream) = (head(bytes), connect(&server));
            for part in head.as_bytes().chunks(piece.min(bytes)) {
                // the server may have refused it by now
                let _ = stream.write_all(part);
                if piece < bytes {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            let answer = rest(stream);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{bytes} bytes by {piece}: {answer:?}");
        }
    }
}

#[test]
fn a_body_that_does_not_come_and_a_connection_without_requests_end() {
    let limits = Limits { head_time: SHORT, body_time: SHORT, ..Limits::default() };
    let server = Running::start(|options| options.limits = limits);
    let start = Instant::now();
    let mut stream = connect(&server);
    write!(stream, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    for begin in ["", "GET /health HTTP/1.1\r\nHo", "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = connect(&server);
        stream.write_all(begin.as_bytes()).unwrap();
        let answer = rest(stream);
        assert_eq!(answer.contains("200 OK"), begin.ends_with("\r\n\r\n"), "{begin:?}: {answer:?}");
    }
    assert!(start.elapsed() < PATIENCE, "they were kept");
}

#[test]
fn a_client_that_reads_nothing_is_cut_off_and_the_others_go_on() {
    let limits = Limits { connections: 4, write_time: SHORT, ..Limits::default() };
    let server = Running::start(|options| {
        options.limits = limits;
        options.max_context = 1 << 20;
        options.engine.max_sequences = 8;
    });
    let mut body = chat("Go on");
    body["stream"] = true.into();
    body["max_tokens"] = 1_000_000.into();
    body["logprobs"] = true.into();
    body["top_logprobs"] = 20.into();
    // all connections that there are: others come in once these are cut off
    let slow: Vec<TcpStream> = (0..4).map(|_| send_unread(&server, &body.to_string())).collect();
    let (status, answer) = server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 3}));
    assert_eq!(status, 200, "{answer}");
    let start = Instant::now();
    while server.metric("requests_cancelled_total") < 4 {
        assert!(start.elapsed() < PATIENCE, "they are generated for nobody");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(slow);
}

/// A model whose arithmetic panics.
struct Broken {
    head: Weight,
}
params!(Broken { head });

impl LanguageModel for Broken {
    fn forward(&self, _: &Batch<'_>, _: Checkpointing) -> Result<Tensor> {
        panic!("broken on purpose")
    }

    fn forward_cached(&self, _: &Tensor, _: &mut Cache) -> Result<Tensor> {
        panic!("broken on purpose")
    }

    fn lm_head(&self) -> &Weight {
        &self.head
    }

    fn cache_shapes(&self) -> Vec<CacheShape> {
        Vec::new()
    }
}

#[test]
fn an_engine_that_has_ended_gives_503_and_the_other_models_go_on() {
    let head = Tensor::from_slice(&[0.0f32; 1000], [1000, 1], &Device::cpu()).unwrap();
    let broken = AdaptedModel {
        name: "broken".to_owned(),
        model: std::sync::Arc::new(Broken { head: Weight::Dense(head.into()) }),
    };
    let server = Running::start(|options| options.adapters.push(broken));
    assert_eq!(server.send("GET", "/health", "", "").0, 200);
    let ask = |name: &str| server.post("/v1/completions", &json!({"model": name, "prompt": "a", "max_tokens": 2}));
    // the first one is there when the engine ends, the second one comes later
    for _ in 0..2 {
        let (status, answer) = ask("broken");
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 503 && message.contains("the engine of the model has stopped"), "{status} {answer}");
    }
    assert_eq!(ask("tiny").0, 200);
    assert_eq!(server.send("GET", "/health", "", "").0, 503);
}

#[test]
fn a_stream_whose_engine_ends_says_so() {
    let head = Tensor::from_slice(&[0.0f32; 1000], [1000, 1], &Device::cpu()).unwrap();
    let broken = Broken { head: Weight::Dense(head.into()) };
    let broken = AdaptedModel { name: "broken".to_owned(), model: std::sync::Arc::new(broken) };
    let server = Running::start(|options| options.adapters.push(broken));
    let body = json!({"model": "broken", "prompt": "a", "stream": true});
    let (_, text) = server.send("POST", "/v1/completions", "", &body.to_string());
    assert!(text.contains("the engine of the model has stopped"), "{text}");
}
