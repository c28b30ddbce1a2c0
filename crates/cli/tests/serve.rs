//! `alluvium serve` as a program: adapters by name.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, fixture, refused_with};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

/// A running server, which is killed in the end.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(place: &Place, args: &[&str]) -> Self {
        let mut command = place.alluvium(&["serve", "--port", "0", "--device", "cpu"]);
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap().to_owned();
        Server { child, address }
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> Value {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let body = body.to_string();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}", body.len());
        write!(stream, "{head}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    fn tokens(&self, model: &str) -> Value {
        let prompt: Vec<u32> = (1..20).collect();
        let body = json!({"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, "logprobs": 0});
        let answer = self.send("POST", "/v1/completions", &body);
        assert_eq!(answer["model"], model);
        answer["choices"][0]["logprobs"].clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn adapters_are_served_by_name_beside_the_plain_model() {
    let place = Place::new();
    let (model, adapter) = (fixture("models/qwen3_next-f32"), fixture("train/lora-qwen3_next-f32"));
    let [poet, pirate] = [format!("poet={adapter}"), format!("pirate={adapter}")];
    let server = Server::start(&place, &["--model", &model, "--adapter", &poet, "--adapter", &pirate]);
    let list = server.send("GET", "/v1/models", &Value::Null);
    let names: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["qwen3_next-f32", "poet", "pirate"]);
    let plain = server.tokens("qwen3_next-f32");
    assert_eq!(server.tokens("poet"), server.tokens("pirate"));
    assert_ne!(server.tokens("poet"), plain);
    assert_eq!(
        server.send("POST", "/v1/completions", &json!({"model": "bard", "prompt": "a"}))["error"]["code"],
        "model_not_found"
    );
    // each is what the program serves of one of them alone
    let alone = Server::start(&place, &["--model", &model, "--adapter-path", &adapter]);
    assert_eq!(alone.tokens("qwen3_next-f32"), server.tokens("poet"));
    let alone = Server::start(&place, &["--model", &model]);
    assert_eq!(alone.tokens("qwen3_next-f32"), plain);
}

#[test]
fn a_wrong_adapter_is_refused_before_the_server_listens() {
    let place = Place::new();
    let (model, adapter) = (fixture("models/qwen3_next-f32"), fixture("train/lora-qwen3_next-f32"));
    let [named, same] = [format!("a={adapter}"), format!("qwen3_next-f32={adapter}")];
    let other = fixture("models/qwen3_5-f32");
    let cases: [(&str, &[&str], &str); 6] = [
        (&model, &["--adapter", "poet"], "expected NAME=DIR"),
        (&model, &["--adapter", "poet=nowhere"], "--adapter poet: nowhere: there is no such file or folder"),
        (&model, &["--adapter", &named, "--adapter", &named], "two models are named a"),
        (&model, &["--adapter", &same], "two models are named qwen3_next-f32"),
        (&other, &["--adapter", &named], "--adapter a: "),
        (&model, &["--adapter", &named, "--adapter-path", &adapter], "cannot be used with"),
    ];
    for (model, args, want) in cases {
        let mut command = place.alluvium(&["serve", "--port", "0", "--device", "cpu", "--model", model]);
        refused_with(command.args(args), &[want]);
    }
}
