//! Text documents from files and folders.

use alluvium_core::{Error, Result};
use alluvium_lm::tokenizer::END_OF_TEXT;
use serde::Deserialize;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Bytes at the start of a file that are searched for NUL: text has none.
const SNIFFED_BYTES: usize = 8192;

/// A document, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// The text.
    pub text: String,
    /// Whether the text ends where the document does: only then the end-of-text token follows it.
    pub is_complete: bool,
}

/// Files that were found and not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Files that are no UTF-8 text.
    pub binary: usize,
    /// Files that were read before, by another path or link.
    pub repeated: usize,
    /// Links to nothing or to a folder above.
    pub broken_links: usize,
}

/// The text under some paths.
#[derive(Debug, Default)]
pub struct TextFiles {
    /// All documents, in the order of the paths and of file names.
    pub documents: Vec<Document>,
    /// Files that were read.
    pub files: usize,
    /// Bytes of text.
    pub bytes: usize,
    /// Files that were not read.
    pub skipped: Skipped,
    /// Those among the binary files that look like text in another encoding than UTF-8.
    pub undecodable: Vec<PathBuf>,
}

/// Reads all text under files and folders.
///
/// A file is one document, except that the token `<|endoftext|>` separates documents, and that a `.jsonl` file in which
/// every line is an object with a string `text` has a document a line. Folders are walked in the order of names; links
/// are followed and each file is read once; hidden files, files named in `.gitignore` or `.ignore`, files that are no
/// UTF-8 text, and the folders of training runs (`out` and every folder with a `trainer.safetensors`) are left out.
///
/// # Errors
/// When a path cannot be read or is neither file nor folder, when `out` is one of the paths, or when there is no text.
pub fn read_text(paths: &[PathBuf], out: Option<&Path>) -> Result<TextFiles> {
    let out = out.and_then(|out| out.canonicalize().ok());
    let mut found = TextFiles::default();
    let mut seen = HashSet::new();
    for path in paths {
        let metadata = std::fs::metadata(path).map_err(Error::io(path, "read"))?;
        if !metadata.is_file() && !metadata.is_dir() {
            let why = "it is neither a regular file nor a folder; write the text to a file first, a resumed run reads it again";
            return Err(Error::file(path, why));
        }
        if out.is_some() && path.canonicalize().ok() == out {
            let why = "the run's folder is the folder of its text, so the run's own files would be read as text; choose another --out";
            return Err(Error::file(path, why));
        }
        for file in walk(path, out.clone(), &mut found.skipped)? {
            if !seen.insert(identity(&file)?) {
                found.skipped.repeated += 1;
                continue;
            }
            match text_of(&file)? {
                Content::Text(text) if text.trim().is_empty() => {}
                Content::Text(text) => {
                    found.files += 1;
                    found.bytes += text.len();
                    found.documents.extend(documents(&file, text)?);
                }
                Content::Binary => found.skipped.binary += 1,
                Content::Undecodable => {
                    found.skipped.binary += 1;
                    found.undecodable.push(file);
                }
            }
        }
    }
    if found.documents.is_empty() {
        return Err(no_text(paths, &found.skipped));
    }
    Ok(found)
}

/// The error for paths without text: says how many files were left out, and why.
fn no_text(paths: &[PathBuf], skipped: &Skipped) -> Error {
    let count = |walker: &mut ignore::WalkBuilder| {
        walker
            .build()
            .filter_map(std::result::Result::ok)
            .filter(|e| e.file_type().is_some_and(|t| t.is_file()))
            .count()
    };
    let walker = |path| {
        let mut walker = ignore::WalkBuilder::new(path);
        walker.require_git(false).follow_links(true);
        walker
    };
    let ignored: usize = paths
        .iter()
        .map(|path| count(walker(path).standard_filters(false)).saturating_sub(count(&mut walker(path))))
        .sum();
    let mut reasons = vec![format!("binary files left out: {}", skipped.binary)];
    if ignored > 0 {
        reasons.push(format!("hidden, or named in .gitignore or .ignore: {ignored}"));
    }
    if skipped.broken_links > 0 {
        reasons.push(format!("links to nothing: {}", skipped.broken_links));
    }
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let why = format!("no text found ({}); give a file or folder of UTF-8 text", reasons.join("; "));
    Error::file(names.join(", "), why)
}

/// The files under a path.
fn walk(path: &Path, out: Option<PathBuf>, skipped: &mut Skipped) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let is_text = move |entry: &ignore::DirEntry| {
        let (path, out) = (entry.path(), out.as_deref());
        let is_out = || out.is_some() && path.canonicalize().ok().as_deref() == out;
        !path.is_dir() || !(path.join(crate::state::FILE).exists() || is_out())
    };
    let mut walker = ignore::WalkBuilder::new(path);
    walker.require_git(false).follow_links(true).sort_by_file_name(Ord::cmp).filter_entry(is_text);
    for entry in walker.build() {
        match entry {
            Ok(entry) if entry.file_type().is_some_and(|kind| kind.is_file()) => files.push(entry.into_path()),
            Ok(_) => {}
            Err(error) if is_broken_link(&error) => skipped.broken_links += 1,
            Err(error) => return Err(Error::file(path, format!("cannot read the folder: {error}"))),
        }
    }
    Ok(files)
}

/// Whether walking failed at a link: to nothing, or to a folder that contains it.
fn is_broken_link(error: &ignore::Error) -> bool {
    match error {
        ignore::Error::Loop { .. } => true,
        ignore::Error::WithPath { path, err } => path.is_symlink() && err.io_error().is_some() || is_broken_link(err),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => is_broken_link(err),
        _ => false,
    }
}

/// The identity of a file, equal for all its paths.
#[cfg(unix)]
fn identity(path: &Path) -> Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).map_err(Error::io(path, "read"))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The identity of a file, equal for all its paths.
#[cfg(not(unix))]
fn identity(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(Error::io(path, "read"))
}

/// What a file holds.
enum Content {
    Text(String),
    /// It has a NUL at its beginning.
    Binary,
    /// It is no UTF-8.
    Undecodable,
}

fn text_of(path: &Path) -> Result<Content> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    if bytes[..bytes.len().min(SNIFFED_BYTES)].contains(&0) {
        return Ok(Content::Binary);
    }
    Ok(String::from_utf8(bytes).map_or(Content::Undecodable, Content::Text))
}

/// A line of a `.jsonl` file of texts.
#[derive(Deserialize)]
struct Line {
    text: String,
}

/// The keys of chats and of pairs, which are no text to continue.
const CHAT_KEYS: [&str; 4] = ["messages", "conversations", "prompt", "instruction"];

/// Refuses lines of chats: as text, a model would learn their braces and escapes.
fn refuse_chats(path: &Path, text: &str) -> Result<()> {
    let Some(line) = text.lines().find(|line| !line.trim().is_empty()) else { return Ok(()) };
    let Ok(serde_json::Value::Object(object)) = serde_json::from_str(line) else { return Ok(()) };
    match CHAT_KEYS.iter().find(|key| object.contains_key(**key) && !object.contains_key("text")) {
        Some(key) => {
            let why = format!(
                "its lines have `{key}` and no `text`: chats and pairs are no text; fine-tune a model on them (`finetune`), or give each line a `text`"
            );
            Err(Error::file(path, why))
        }
        None => Ok(()),
    }
}

/// The documents of a file.
fn documents(path: &Path, text: String) -> Result<Vec<Document>> {
    let lines = || -> Option<Vec<String>> {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines.map(|line| serde_json::from_str::<Line>(line).ok().map(|line| line.text)).collect()
    };
    let is_jsonl = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("jsonl"));
    if is_jsonl {
        refuse_chats(path, &text)?;
    }
    let texts = is_jsonl.then(lines).flatten().unwrap_or_else(|| match text.contains(END_OF_TEXT) {
        true => text.split(END_OF_TEXT).map(str::to_owned).collect(),
        false => vec![text],
    });
    let texts = texts.into_iter().filter(|text| !text.trim().is_empty());
    Ok(texts.map(|text| Document { text, is_complete: true }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b.txt"), "line\n".repeat(2000)).unwrap();
        fs::write(folder.path().join("a.txt"), "first\n").unwrap();
        fs::write(folder.path().join("picture.png"), b"\x89PNG\0\0\0").unwrap();
        fs::write(folder.path().join("latin1.txt"), b"caf\xe9").unwrap();
        fs::write(folder.path().join(".gitignore"), "ignored\n").unwrap();
        fs::write(folder.path().join("ignored"), "secret").unwrap();
        folder
    }

    fn texts(found: &TextFiles) -> Vec<&str> {
        found.documents.iter().map(|document| document.text.as_str()).collect()
    }

    #[test]
    fn a_file_is_a_document_and_binary_files_are_counted() {
        let folder = folder();
        let found = read_text(&[folder.path().to_owned()], None).unwrap();
        assert_eq!((found.files, found.skipped.binary, found.bytes), (2, 2, 10_006));
        assert_eq!(texts(&found), ["first\n", &"line\n".repeat(2000)]);
        assert!(found.documents.iter().all(|document| document.is_complete));
    }

    #[test]
    fn lines_of_json_and_end_of_text_separate_documents() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("a.jsonl", "{\"text\":\"one\\ntwo\"}\n\n{\"text\":\"three\",\"id\":3}\n");
        write("b.jsonl", "{\"text\":\"one\"}\n{\"other\":1}\n");
        write("c.txt", "four<|endoftext|>\n<|endoftext|>five");
        let found = read_text(&[folder.path().to_owned()], None).unwrap();
        assert_eq!(texts(&found), ["one\ntwo", "three", "{\"text\":\"one\"}\n{\"other\":1}\n", "four", "five"]);
    }

    #[test]
    fn lines_of_chats_are_refused_and_files_in_other_encodings_are_named() {
        let folder = folder();
        let found = read_text(&[folder.path().to_owned()], None).unwrap();
        assert_eq!(found.undecodable, [folder.path().join("latin1.txt")]);
        for line in ["{\"messages\":[]}", "{\"prompt\":\"a\",\"completion\":\"b\"}", "{\"conversations\":[]}"] {
            fs::write(folder.path().join("train.jsonl"), format!("\n{line}\n")).unwrap();
            let error = read_text(&[folder.path().to_owned()], None).unwrap_err().to_string();
            assert!(error.contains("train.jsonl: its lines have `") && error.contains("no `text`"), "{error}");
        }
    }

    #[test]
    fn a_file_is_read_once_by_whatever_path() {
        let folder = folder();
        let path = folder.path();
        fs::hard_link(path.join("a.txt"), path.join("c.txt")).unwrap();
        let paths = [path.to_owned(), path.join("a.txt"), path.join("."), path.join("b.txt")];
        let found = read_text(&paths, None).unwrap();
        assert_eq!((found.files, found.skipped.repeated), (2, 8));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_those_to_nothing_are_counted() {
        use std::os::unix::fs::symlink;
        let blobs = folder();
        let folder = tempfile::tempdir().unwrap();
        symlink(blobs.path().join("a.txt"), folder.path().join("link.txt")).unwrap();
        symlink(blobs.path(), folder.path().join("more")).unwrap();
        symlink(folder.path(), folder.path().join("loop")).unwrap();
        symlink("nowhere", folder.path().join("gone")).unwrap();
        let found = read_text(&[folder.path().to_owned()], None).unwrap();
        assert_eq!((found.files, found.skipped.repeated, found.skipped.broken_links), (2, 1, 2));
    }

    #[test]
    fn what_is_no_text_is_an_error_that_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let error = |path: PathBuf| read_text(&[path], None).unwrap_err().to_string();
        let said = error(folder.path().to_owned());
        assert!(
            said.ends_with("no text found (binary files left out: 0); give a file or folder of UTF-8 text"),
            "{said}"
        );
        assert!(error(folder.path().join("nowhere")).starts_with("cannot read"));
        fs::create_dir(folder.path().join("data")).unwrap();
        for name in ["a.txt", ".hidden"] {
            fs::write(folder.path().join("data").join(name), "text").unwrap();
        }
        for (file, pattern) in [(".gitignore", "data/*"), (".gitignore", "*.txt"), (".ignore", "a.*")] {
            fs::write(folder.path().join(file), pattern).unwrap();
            let said = error(folder.path().join("data"));
            assert!(said.contains("hidden, or named in .gitignore or .ignore: 2"), "{pattern}: {said}");
            fs::remove_file(folder.path().join(file)).unwrap();
        }
        let said = error(PathBuf::from("/dev/null"));
        assert!(said.contains("neither a regular file nor a folder"), "{said}");
    }

    #[test]
    fn the_folders_of_runs_are_no_text_and_the_own_one_cannot_be_the_data() {
        let folder = folder();
        for run in ["own", "other"] {
            fs::create_dir(folder.path().join(run)).unwrap();
            fs::write(folder.path().join(run).join("metrics.jsonl"), "{}\n").unwrap();
        }
        fs::write(folder.path().join("other").join(crate::state::FILE), "").unwrap();
        let found = read_text(&[folder.path().to_owned()], Some(&folder.path().join("own"))).unwrap();
        assert_eq!(found.files, 2);
        let error = read_text(&[folder.path().join(".")], Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains("choose another --out"), "{error}");
    }
}
