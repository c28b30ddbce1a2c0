//! Downloads into the cache.
//!
//! A file is written to `blobs/ETAG.incomplete`, where an interrupted download is resumed, and renamed once it has its
//! size and its hash. The ref of the model is written after all files, so a model is found whole or not at all.

use crate::cache::Hub;
use crate::name::{ModelName, check_file, is_commit};
use alluvium_core::{Error, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

/// The largest description of a model that is read, in bytes.
const LARGEST_LIST: u64 = 16 << 20;
/// The most files that a model may have.
const MOST_FILES: usize = 10_000;
/// How often a file is tried again where the connection breaks.
const TRIES: u32 = 4;
/// Bytes that are read at once.
const BUFFER: usize = 1 << 18;

/// A server with models.
#[derive(Clone)]
pub struct Remote {
    /// The address: `https://huggingface.co`.
    pub endpoint: String,
    /// The token of an account, for models that need one.
    pub token: Option<String>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // the token is a secret
        write!(f, "Remote at {}", self.endpoint)
    }
}

/// The state of a download.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file that is fetched.
    pub file: &'a str,
    /// The number of files that are complete.
    pub files_done: usize,
    /// The number of files.
    pub files: usize,
    /// The bytes of this file that are there.
    pub bytes_done: u64,
    /// The bytes of this file; `None` where the server does not say.
    pub bytes: Option<u64>,
}

/// Receives the state of a download.
pub type ProgressObserver<'a> = dyn FnMut(Progress<'_>) + 'a;

impl Hub {
    /// Fetches the configuration, the tokenizer, the templates and the safetensors files of a model into the cache.
    /// Files that are there are not fetched again. Returns their folder.
    ///
    /// # Errors
    /// When the server cannot be reached, does not have the model or refuses it, a file has another size or hash than
    /// the server said, or the disk is full. What was fetched is kept and resumed by the next call.
    pub fn download(&self, name: &ModelName, remote: &Remote, observe: &mut ProgressObserver<'_>) -> Result<PathBuf> {
        let connection = Connection::new(remote, name);
        let (commit, files) = connection.list()?;
        let model = self.model_folder(name);
        let snapshot = model.join("snapshots").join(&commit);
        for (files_done, file) in files.iter().enumerate() {
            let place = snapshot.join(file);
            if place.is_file() {
                continue;
            }
            let blob = connection.fetch(&commit, file, &model.join("blobs"), &mut |bytes_done, bytes| {
                observe(Progress { file, files_done, files: files.len(), bytes_done, bytes });
            })?;
            link(&blob, &place, file)?;
        }
        let path = model.join("refs").join(name.revision());
        make_parent(&path)?;
        let partial = path.with_extension("partial");
        fs::write(&partial, &commit).map_err(Error::io(&partial, "write"))?;
        fs::rename(&partial, &path).map_err(Error::io(&path, "write"))?;
        Ok(snapshot)
    }
}

/// The files of a list that are fetched: those of `mlx_lm`, without other weights and other copies of the weights.
fn wanted(files: Vec<String>) -> Vec<String> {
    let is_model = |file: &String| file.starts_with("model") && file.ends_with(".safetensors");
    let has_model = files.iter().any(is_model);
    let wanted = |file: &String| match file.rsplit_once('/') {
        Some((folder, _)) => folder == "additional_chat_templates" && file.ends_with(".jinja"),
        None if file.ends_with(".safetensors") => is_model(file) || !has_model,
        None => [".json", ".jinja", ".txt", ".model"].iter().any(|end| file.ends_with(end)),
    };
    files.into_iter().filter(wanted).collect()
}

/// What the server says of a file before its bytes.
struct Described {
    etag: String,
    size: Option<u64>,
}

struct Connection<'a> {
    remote: &'a Remote,
    name: &'a ModelName,
    /// Follows redirections; a token is sent to the first host alone.
    agent: Agent,
    /// Follows none, because the server itself describes a file that it redirects.
    describing: Agent,
}

impl<'a> Connection<'a> {
    fn new(remote: &'a Remote, name: &'a ModelName) -> Self {
        let config = |redirects: u32| {
            let config = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(redirects)
                .max_redirects_will_error(redirects > 0)
                .user_agent(concat!("alluvium/", env!("CARGO_PKG_VERSION")))
                .timeout_connect(Some(Duration::from_secs(15)))
                .timeout_recv_response(Some(Duration::from_secs(60)));
            #[cfg(any(target_vendor = "apple", windows))]
            let config = {
                let tls = ureq::tls::TlsConfig::builder().provider(ureq::tls::TlsProvider::NativeTls);
                config.tls_config(tls.build())
            };
            Agent::new_with_config(config.build())
        };
        Connection { remote, name, agent: config(8), describing: config(0) }
    }

    /// The commit of the revision, and the files that are fetched.
    fn list(&self) -> Result<(String, Vec<String>)> {
        let path = format!("api/models/{}/revision/{}", self.name.repository(), escaped(self.name.revision()));
        let mut response = self.get(&path, 0)?;
        let text = response.body_mut().with_config().limit(LARGEST_LIST).read_to_string();
        let text = text.map_err(|error| self.unreachable(&error))?;
        let odd = |why: &str| self.error(format!("{} answers with something else than a model: {why}", self.host()));
        let json: Value = serde_json::from_str(&text).map_err(|_| odd("no JSON"))?;
        let commit = json["sha"].as_str().filter(|sha| is_commit(sha)).ok_or_else(|| odd("no commit"))?;
        let siblings = json["siblings"].as_array().ok_or_else(|| odd("no list of files"))?;
        if siblings.len() > MOST_FILES {
            return Err(odd(&format!("{} files, at most {MOST_FILES} are taken", siblings.len())));
        }
        let all: Vec<String> = siblings.iter().filter_map(|s| Some(s["rfilename"].as_str()?.to_owned())).collect();
        all.iter().try_for_each(|file| check_file(file))?;
        let files = wanted(all.clone());
        if !files.iter().any(|file| file.ends_with(".safetensors")) {
            let weights = [".gguf", ".bin", ".pt", ".pth", ".npz"];
            let other: Vec<String> =
                all.into_iter().filter(|file| weights.iter().any(|end| file.ends_with(end))).take(4).collect();
            let has = if other.is_empty() { String::new() } else { format!(", but {}", other.join(", ")) };
            return Err(self.error(format!("it has no safetensors files{has}; choose another model")));
        }
        Ok((commit.to_owned(), files))
    }

    /// Fetches a file to the folder of blobs, unless it is there. Returns its path.
    fn fetch(
        &self,
        commit: &str,
        file: &str,
        blobs: &Path,
        observe: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<PathBuf> {
        let path = format!("{}/resolve/{commit}/{}", self.name.repository(), escaped(file));
        let described = self.describe(&path)?;
        let blob = blobs.join(&described.etag);
        if blob.is_file() {
            return Ok(blob);
        }
        let partial = blobs.join(format!("{}.incomplete", described.etag));
        make_parent(&partial)?;
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&partial);
        let mut out = open.map_err(Error::io(&partial, "create"))?;
        if let Err(TryLockError::WouldBlock) = out.try_lock() {
            return Err(Error::file(&partial, "another download writes to it; wait for its end"));
        }
        let mut tried = 0;
        while let Err(error) = self.transfer(&path, &described, &mut out, &mut *observe) {
            tried += 1;
            if tried == TRIES || !matches!(error, Broken::Connection(_)) {
                return Err(match error {
                    Broken::Connection(error) => error,
                    Broken::Other(error) => error,
                });
            }
            std::thread::sleep(Duration::from_millis(250 << tried));
        }
        if let Err(why) = verify(&mut out, &described) {
            // it would be resumed
            let _ = fs::remove_file(&partial);
            return Err(self.error(format!("{file}: {why}; it is removed, try again")));
        }
        out.sync_all().map_err(Error::io(&partial, "write"))?;
        fs::rename(&partial, &blob).map_err(Error::io(&blob, "write"))?;
        Ok(blob)
    }

    /// Appends what is missing of a file.
    fn transfer(
        &self,
        path: &str,
        described: &Described,
        out: &mut File,
        observe: &mut dyn FnMut(u64, Option<u64>),
    ) -> std::result::Result<(), Broken> {
        let io = |error: std::io::Error| Broken::Other(Error::io(path, "write")(error));
        let mut done = out.seek(SeekFrom::End(0)).map_err(io)?;
        if described.size.is_some_and(|size| done > size) {
            out.set_len(0).map_err(io)?;
            done = 0;
        }
        observe(done, described.size);
        if described.size == Some(done) {
            return Ok(());
        }
        let mut response = self.get(path, done).map_err(Broken::from)?;
        if response.status().as_u16() != 206 {
            // the server sends the file from its beginning
            out.set_len(0).map_err(io)?;
            done = 0;
        }
        out.seek(SeekFrom::Start(done)).map_err(io)?;
        let mut reader = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = reader.read(&mut buffer).map_err(|error| Broken::Connection(self.unreachable(&error)))?;
            if n == 0 {
                break;
            }
            done += n as u64;
            if described.size.is_some_and(|size| done > size) {
                return Err(Broken::Other(self.error(format!("{path}: the server sends more than it said"))));
            }
            out.write_all(&buffer[..n]).map_err(io)?;
            observe(done, described.size);
        }
        match described.size.is_some_and(|size| done < size) {
            true => Err(Broken::Connection(self.error(format!("{path}: the connection ended early")))),
            false => Ok(()),
        }
    }

    fn describe(&self, path: &str) -> Result<Described> {
        let mut path = path.to_owned();
        for _ in 0..4 {
            let request = self.describing.head(self.url(&path)).header("Accept-Encoding", "identity");
            let response = self.authorized(request).call().map_err(|error| self.unreachable(&error))?;
            let header = |name: &str| response.headers().get(name)?.to_str().ok();
            // a model that was renamed: the same server, another path
            let moved = header("location").filter(|to| response.status().is_redirection() && to.starts_with('/'));
            if let Some(to) = moved {
                path = to.trim_start_matches('/').to_owned();
                continue;
            }
            if !response.status().is_redirection() {
                self.check(&response)?;
            }
            let etag = header("x-linked-etag").or(header("etag")).unwrap_or("");
            let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            if !(1..=128).contains(&etag.len()) || !etag.chars().all(is_name) {
                return Err(self.error(format!("{path}: the server gives the tag {etag:?}, which is no hash")));
            }
            let length = header("content-length").filter(|_| response.status().is_success());
            let size = header("x-linked-size").or(length).and_then(|size| size.parse().ok());
            return Ok(Described { etag, size });
        }
        Err(self.error(format!("{path}: the server redirects it in a circle")))
    }

    fn get(&self, path: &str, from: u64) -> Result<Response<Body>> {
        let mut request = self.agent.get(self.url(path)).header("Accept-Encoding", "identity");
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        let response = self.authorized(request).call().map_err(|error| self.unreachable(&error))?;
        self.check(&response)?;
        Ok(response)
    }

    fn authorized<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.remote.token {
            Some(token) => request.header("Authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.remote.endpoint.trim_end_matches('/'))
    }

    fn host(&self) -> &str {
        let endpoint = self.remote.endpoint.trim_end_matches('/');
        endpoint.split_once("://").map_or(endpoint, |(_, host)| host)
    }

    /// An error for a status that is none of success.
    fn check(&self, response: &Response<Body>) -> Result<()> {
        let status = response.status().as_u16();
        if response.status().is_success() {
            return Ok(());
        }
        let (host, repository) = (self.host(), self.name.repository());
        let token = match self.remote.token {
            Some(_) => "the token of HF_TOKEN may not read it",
            None => "set HF_TOKEN to a token of an account that may read it",
        };
        Err(self.error(match (status, code(response.headers())) {
            (_, "RevisionNotFound") => format!("{host} has no revision `{}` of it", self.name.revision()),
            (_, "GatedRepo") => {
                format!("it is gated: accept its terms at {}, and {token}", self.url(&repository))
            }
            // the Hub does not say whether a model that one may not see exists
            (401, _) => format!("{host} has no such model, or it is private: {token}"),
            (403, _) => format!("{host} refuses it: {token}"),
            (404, _) => format!("{host} has no such model; look at its spelling"),
            (429, _) => format!("{host} has had too many requests; try again later"),
            (500.., _) => format!("{host} is out of order (status {status}); try again later"),
            _ => format!("{host} answers with status {status}"),
        }))
    }

    fn unreachable(&self, error: &dyn std::fmt::Display) -> Error {
        self.error(format!("{} cannot be reached: {error}; what was fetched is kept for another try", self.host()))
    }

    fn error(&self, why: String) -> Error {
        Error::file(self.name.to_string(), why)
    }
}

/// Why a transfer ended early.
enum Broken {
    /// It may be resumed.
    Connection(Error),
    Other(Error),
}

impl From<Error> for Broken {
    fn from(error: Error) -> Self {
        if error.to_string().contains("cannot be reached") { Broken::Connection(error) } else { Broken::Other(error) }
    }
}

/// The Hub's own name of an error.
fn code(headers: &HeaderMap) -> &str {
    headers.get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or("")
}

/// A path in an address.
fn escaped(path: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    path.bytes().map(escape).collect()
}

/// Compares a file with what the server said of it. The tag of a large file is its SHA-256.
fn verify(file: &mut File, described: &Described) -> std::result::Result<(), String> {
    let read = |error: std::io::Error| format!("it cannot be read: {error}");
    let size = file.seek(SeekFrom::End(0)).map_err(read)?;
    if let Some(wanted) = described.size.filter(|&wanted| wanted != size) {
        return Err(format!("it has {size} bytes, the server said {wanted}"));
    }
    let is_hash = described.etag.len() == 64 && described.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hash {
        return Ok(());
    }
    file.seek(SeekFrom::Start(0)).map_err(read)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; BUFFER]);
    loop {
        match file.read(&mut buffer).map_err(read)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    match found.eq_ignore_ascii_case(&described.etag) {
        true => Ok(()),
        false => Err(format!("its SHA-256 is {found}, the server said {}", described.etag)),
    }
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(Error::io(parent, "create"))
}

/// Puts a blob into a snapshot: a relative link, or a copy where the system has no links.
fn link(blob: &Path, place: &Path, file: &str) -> Result<()> {
    make_parent(place)?;
    // a link to a blob that is gone
    if place.is_symlink() {
        fs::remove_file(place).map_err(Error::io(place, "remove"))?;
    }
    #[cfg(unix)]
    {
        let up = "../".repeat(2 + file.matches('/').count());
        let target = format!("{up}blobs/{}", blob.file_name().unwrap_or_default().to_string_lossy());
        std::os::unix::fs::symlink(target, place).map_err(Error::io(place, "create"))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        fs::copy(blob, place).map(drop).map_err(Error::io(place, "create"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_that_a_model_needs_are_fetched_and_no_other_weights() {
        let list = |files: &[&str]| wanted(files.iter().map(|file| (*file).to_owned()).collect());
        let files = [
            "README.md",
            ".gitattributes",
            "config.json",
            "model-00001-of-00002.safetensors",
            "consolidated.safetensors",
            "pytorch_model.bin",
            "onnx/model.onnx",
            "original/params.json",
            "tokenizer.json",
            "merges.txt",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
        ];
        let want: Vec<&str> = [2, 3, 8, 9, 10, 11].map(|at: usize| files[at]).to_vec();
        assert_eq!(list(&files), want);
        assert_eq!(list(&["weights.safetensors"]), ["weights.safetensors"]);
    }
}
