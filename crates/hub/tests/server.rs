//! Downloads from a server of files on this machine.
#![cfg(feature = "download")]
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_hub::{Hub, ModelName, Remote};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the server behaves.
#[derive(Clone, Default)]
struct Behavior {
    files: BTreeMap<String, Vec<u8>>,
    /// In place of the list of files.
    list: Option<String>,
    /// Status and error code of every answer.
    status: Option<(u16, &'static str)>,
    /// Bytes after which each transfer of a file breaks.
    breaks_after: Option<usize>,
    ignores_ranges: bool,
    /// The tag of every file.
    etag: Option<String>,
    /// Sends other bytes than the hash says.
    corrupts: bool,
}

struct Server {
    remote: Remote,
    behavior: Arc<Mutex<Behavior>>,
    /// Method, path, range and authorization of each request.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(behavior: Behavior) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (behavior, requests) = (Arc::new(Mutex::new(behavior)), Arc::new(Mutex::new(Vec::new())));
        let (of_server, log) = (behavior.clone(), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (behavior, log) = (of_server.clone(), log.clone());
                std::thread::spawn(move || answer(stream, &behavior, &log));
            }
        });
        Server { remote: Remote { endpoint, token: Some("secret".to_owned()) }, behavior, requests }
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.requests.lock().unwrap())
    }
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(stream: TcpStream, behavior: &Mutex<Behavior>, log: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let headers: Vec<String> =
        lines.map_while(Result::ok).take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
    let header = |name: &str| headers.iter().find_map(|line| line.strip_prefix(name).map(|v| v.trim().to_owned()));
    let range = header("range:").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let authorized = header("authorization:").is_some_and(|token| token == "bearer secret");
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
    log.lock().unwrap().push(format!("{method} {path} {range:?} {authorized}"));
    let Behavior { files, list, status, breaks_after, ignores_ranges, etag, corrupts } =
        behavior.lock().unwrap().clone();
    let mut out = stream;
    let mut send = |status: u16, more: &str, length: usize, body: &[u8]| {
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n");
        let _ = out.write_all(head.as_bytes()).and_then(|()| out.write_all(body));
    };
    if let Some((status, code)) = status {
        return send(status, &format!("X-Error-Code: {code}\r\n"), 0, b"");
    }
    if path.starts_with("/api/models/") {
        let siblings: Vec<String> = files.keys().map(|name| format!("{{\"rfilename\":\"{name}\"}}")).collect();
        let json = format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", siblings.join(","));
        let json = list.unwrap_or(json);
        return send(200, "", json.len(), json.as_bytes());
    }
    let name = path.split(&format!("/resolve/{COMMIT}/")).nth(1).unwrap_or("").to_owned();
    let Some(bytes) = files.get(&name) else { return send(404, "X-Error-Code: EntryNotFound\r\n", 0, b"") };
    let tag = format!("ETag: \"{}\"\r\n", etag.unwrap_or_else(|| sha(bytes)));
    if method == "HEAD" {
        return send(200, &tag, bytes.len(), b"");
    }
    let mut body = bytes.clone();
    if corrupts {
        body[0] ^= 1;
    }
    let from = range.filter(|_| !ignores_ranges).unwrap_or(0);
    let body = &body[from..];
    let sent = &body[..breaks_after.unwrap_or(usize::MAX).min(body.len())];
    send(if from > 0 { 206 } else { 200 }, &tag, body.len(), sent);
}

fn files() -> BTreeMap<String, Vec<u8>> {
    let weights: Vec<u8> = (0..300_000u32).map(|i| ((i * 7919) >> 3) as u8).collect();
    let named = [
        ("config.json", b"{\"model_type\":\"llama\"}".to_vec()),
        ("model.safetensors", weights),
        ("additional_chat_templates/tool_use.jinja", b"{{ 1 }}".to_vec()),
        ("README.md", b"not fetched".to_vec()),
    ];
    named.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

fn name() -> ModelName {
    ModelName::parse("org/name").unwrap()
}

#[test]
fn a_model_is_fetched_once_and_found_afterwards() {
    let (folder, server) =
        (tempfile::tempdir().unwrap(), Server::new(Behavior { files: files(), ..Behavior::default() }));
    let hub = Hub::new(folder.path());
    let mut seen = Vec::new();
    let snapshot =
        hub.download(&name(), &server.remote, &mut |p| seen.push((p.file.to_owned(), p.bytes_done))).unwrap();
    for (name, bytes) in files() {
        let path = snapshot.join(&name);
        match name == "README.md" {
            true => assert!(!path.exists()),
            false => assert_eq!(std::fs::read(path).unwrap(), bytes, "{name}"),
        }
    }
    assert_eq!(hub.find(&name()).unwrap(), Some(snapshot.clone()));
    assert!(seen.contains(&("model.safetensors".to_owned(), 300_000)), "{seen:?}");
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.ends_with("true")), "the token is sent: {requests:?}");
    assert!(!snapshot.join("config.json").symlink_metadata().unwrap().is_file(), "a link into blobs");
    hub.download(&name(), &server.remote, &mut |_| ()).unwrap();
    assert_eq!(server.requests().len(), 1, "only the list is asked for again");
    assert_eq!(hub.models().unwrap()[0].bytes, 300_000 + 22 + 7);
}

#[test]
fn a_broken_download_is_resumed_where_it_stopped() {
    let behavior = Behavior { files: files(), breaks_after: Some(70_000), ..Behavior::default() };
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::new(behavior));
    let hub = Hub::new(folder.path());
    let error = hub.download(&name(), &server.remote, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors") || error.contains("cannot be reached"), "{error}");
    assert_eq!(hub.find(&name()).unwrap(), None, "half a model is not found");
    server.requests();
    server.behavior.lock().unwrap().breaks_after = None;
    let snapshot = hub.download(&name(), &server.remote, &mut |_| ()).unwrap();
    assert!(server.requests().iter().any(|request| request.contains("Some(280000)")), "four tries of 70000 bytes");
    assert_eq!(std::fs::read(snapshot.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
}

#[test]
fn a_server_without_ranges_sends_the_file_again() {
    let behavior = Behavior { files: files(), breaks_after: Some(70_000), ignores_ranges: true, ..Behavior::default() };
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::new(behavior));
    let hub = Hub::new(folder.path());
    hub.download(&name(), &server.remote, &mut |_| ()).unwrap_err();
    server.behavior.lock().unwrap().breaks_after = None;
    let snapshot = hub.download(&name(), &server.remote, &mut |_| ()).unwrap();
    assert_eq!(std::fs::read(snapshot.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
}

#[test]
fn other_bytes_than_the_hash_says_are_refused_and_removed() {
    let behavior = Behavior { files: files(), corrupts: true, ..Behavior::default() };
    let (folder, server) = (tempfile::tempdir().unwrap(), Server::new(behavior));
    let hub = Hub::new(folder.path());
    let error = hub.download(&name(), &server.remote, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("its SHA-256 is ") && error.contains("try again"), "{error}");
    server.behavior.lock().unwrap().corrupts = false;
    hub.download(&name(), &server.remote, &mut |_| ()).unwrap();
}

#[test]
fn refusals_of_the_server_are_said_in_words() {
    let server = Server::new(Behavior::default());
    let folder = tempfile::tempdir().unwrap();
    for (status, code, words) in [
        (404, "RepoNotFound", "has no such model; look at its spelling"),
        (404, "RevisionNotFound", "has no revision `main` of it"),
        (401, "RepoNotFound", "has no such model, or it is private: the token of HF_TOKEN may not read it"),
        (401, "GatedRepo", "it is gated: accept its terms at http://"),
        (403, "GatedRepo", "it is gated: accept its terms at http://"),
        (429, "", "has had too many requests"),
        (503, "", "is out of order (status 503)"),
        (418, "", "answers with status 418"),
    ] {
        server.behavior.lock().unwrap().status = Some((status, code));
        let error = Hub::new(folder.path()).download(&name(), &server.remote, &mut |_| ()).unwrap_err().to_string();
        assert!(error.starts_with("org/name: ") && error.contains(words), "{status} {code}: {error}");
    }
    let gone = Remote { endpoint: "http://127.0.0.1:9".to_owned(), token: None };
    let error = Hub::new(folder.path()).download(&name(), &gone, &mut |_| ()).unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:9 cannot be reached: "), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_a_hostile_server_says_stays_in_the_cache() {
    let server = Server::new(Behavior { files: files(), ..Behavior::default() });
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::new(folder.path().join("cache"));
    let error = || hub.download(&name(), &server.remote, &mut |_| ()).unwrap_err().to_string();
    let list = |file: &str| format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{{\"rfilename\":\"{file}\"}}]}}");
    for (answer, words) in [
        (list("../../../model.safetensors"), "which is not a path in a folder"),
        (list("/etc/model.safetensors"), "which is not a path in a folder"),
        (list("model.gguf"), "it has no safetensors files, but model.gguf"),
        ("{\"sha\":\"../x\",\"siblings\":[]}".to_owned(), "no commit"),
        (format!("{{\"sha\":\"{COMMIT}\"}}"), "no list of files"),
        ("<html>".to_owned(), "no JSON"),
        ("9".repeat(17 << 20), "cannot be reached"),
    ] {
        server.behavior.lock().unwrap().list = Some(answer);
        let error = error();
        assert!(error.contains(words), "{error}");
    }
    server.behavior.lock().unwrap().list = None;
    for tag in ["../../x", "", "a/b", &"x".repeat(200)] {
        server.behavior.lock().unwrap().etag = Some(tag.to_owned());
        assert!(error().contains("which is no hash"));
    }
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0, "nothing is written");
}
