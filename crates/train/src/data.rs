//! Text from files and folders, cut into pieces, some of them held out.

use alluvium_core::rng::Rng;
use alluvium_core::{Error, Result};
use std::path::{Path, PathBuf};

/// Bytes at the start of a file that are looked at for a NUL: what a text does not have.
const SNIFF: usize = 8192;
/// Pieces are cut at the first end of a line after this many bytes.
const PIECE: usize = 4096;

/// A part of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The text.
    pub text: String,
    /// Whether it is kept from training.
    pub held_out: bool,
}

/// What was found under the given paths.
#[derive(Debug, Default)]
pub struct Found {
    /// All text, in a fixed order.
    pub pieces: Vec<Piece>,
    /// Files that were read.
    pub files: usize,
    /// Files that are no text and were left out.
    pub binary: usize,
    /// Bytes of text.
    pub bytes: usize,
}

/// Reads files and folders. Folders are walked in the order of names; what .gitignore names and hidden files are left
/// out; files that are no UTF-8 text are left out and counted. The folder `out` of the run itself and those of other
/// runs are no text: a run that read its own measurements could not go on.
///
/// Documents are cut at ends of lines into pieces of about 4 KiB. Of these, `held_out` (0 to 1) are kept from training,
/// chosen by `seed`.
///
/// # Errors
/// When a path cannot be read, or there is no text at all.
pub fn read(paths: &[PathBuf], out: Option<&Path>, held_out: f64, seed: u64) -> Result<Found> {
    let out = out.and_then(|out| out.canonicalize().ok());
    let mut found = Found::default();
    for path in paths {
        std::fs::metadata(path).map_err(Error::io(path, "read"))?;
        for file in walk(path, out.clone())? {
            match text_of(&file)? {
                Some(text) if text.trim().is_empty() => {}
                Some(text) => {
                    found.files += 1;
                    found.bytes += text.len();
                    found.pieces.extend(pieces(text).map(|text| Piece { text, held_out: false }));
                }
                None => found.binary += 1,
            }
        }
    }
    if found.pieces.is_empty() {
        let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
        let why =
            format!("no text found (binary files left out: {}); give a file or folder of UTF-8 text", found.binary);
        return Err(Error::file(names.join(", "), why));
    }
    hold_out(&mut found.pieces, held_out, seed)?;
    Ok(found)
}

fn walk(path: &Path, out: Option<PathBuf>) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let text = move |entry: &ignore::DirEntry| {
        let (path, out) = (entry.path(), out.as_deref());
        let same =
            out.is_some_and(|out| path.file_name() == out.file_name() && path.canonicalize().is_ok_and(|p| p == out));
        !same && !path.join(crate::state::FILE).exists()
    };
    let mut walker = ignore::WalkBuilder::new(path);
    for entry in walker.require_git(false).sort_by_file_name(Ord::cmp).filter_entry(text).build() {
        let entry = entry.map_err(|e| Error::file(path, format!("cannot walk: {e}")))?;
        if entry.file_type().is_some_and(|kind| kind.is_file()) {
            files.push(entry.into_path());
        }
    }
    Ok(files)
}

/// The file's text; none if it is binary.
fn text_of(path: &Path) -> Result<Option<String>> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    if bytes[..bytes.len().min(SNIFF)].contains(&0) {
        return Ok(None);
    }
    Ok(String::from_utf8(bytes).ok())
}

fn pieces(text: String) -> impl Iterator<Item = String> {
    let mut cuts = vec![0];
    let mut last = 0;
    for (at, _) in text.match_indices('\n') {
        if at + 1 - last >= PIECE {
            last = at + 1;
            cuts.push(last);
        }
    }
    // a line longer than a piece stays whole: a cut inside a word would teach what nobody wrote
    cuts.push(text.len());
    cuts.dedup();
    (1..cuts.len()).map(move |i| text[cuts[i - 1]..cuts[i]].to_owned())
}

fn hold_out(pieces: &mut [Piece], share: f64, seed: u64) -> Result<()> {
    if !(0.0..1.0).contains(&share) {
        return Err(Error::value("held_out", format!("{share} is no share; expected 0 or more and less than 1")));
    }
    if share == 0.0 {
        return Ok(());
    }
    let count = ((pieces.len() as f64 * share).round() as usize).max(1);
    if count >= pieces.len() {
        let why = format!(
            "too little text to hold any out: it is cut into pieces of 4 KiB and there is only {}; give more, or \
             hold none out (held_out = 0)",
            pieces.len()
        );
        return Err(Error::value("held_out", why));
    }
    let mut order: Vec<usize> = (0..pieces.len()).collect();
    Rng::new(seed, "held out").shuffle(&mut order);
    order[..count].iter().for_each(|&i| pieces[i].held_out = true);
    Ok(())
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

    #[test]
    fn text_is_read_in_order_and_binary_files_are_counted() {
        let folder = folder();
        let found = read(&[folder.path().to_owned()], None, 0.0, 1).unwrap();
        assert_eq!((found.files, found.binary, found.bytes), (2, 2, 10_006));
        assert_eq!(found.pieces[0].text, "first\n");
        let whole: String = found.pieces[1..].iter().map(|p| p.text.as_str()).collect();
        assert_eq!(whole, "line\n".repeat(2000));
        assert!(found.pieces.iter().all(|p| p.text.ends_with('\n') && !p.text.contains("secret")));
    }

    #[test]
    fn pieces_are_held_out_by_seed_and_never_all() {
        let folder = folder();
        let held = |seed| {
            let found = read(&[folder.path().to_owned()], None, 0.3, seed).unwrap();
            found.pieces.iter().map(|p| p.held_out).collect::<Vec<_>>()
        };
        assert_eq!(held(1), held(1));
        assert_eq!(held(1).iter().filter(|&&h| h).count(), 1);
        let error = read(&[folder.path().join("a.txt")], None, 0.3, 1).unwrap_err().to_string();
        assert_eq!(
            error,
            "held_out: too little text to hold any out: it is cut into pieces of 4 KiB and there is only 1; give more, \
             or hold none out (held_out = 0)"
        );
    }

    #[test]
    fn an_empty_folder_and_a_missing_path_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = read(&[folder.path().to_owned()], None, 0.1, 1).unwrap_err().to_string();
        assert!(
            error.ends_with("no text found (binary files left out: 0); give a file or folder of UTF-8 text"),
            "{error}"
        );
        let error = read(&[folder.path().join("nowhere")], None, 0.1, 1).unwrap_err().to_string();
        assert!(error.starts_with("cannot read"), "{error}");
    }

    #[test]
    fn the_folders_of_runs_are_no_text() {
        let folder = folder();
        for run in ["own", "other"] {
            fs::create_dir(folder.path().join(run)).unwrap();
            fs::write(folder.path().join(run).join("metrics.jsonl"), "{}\n").unwrap();
        }
        fs::write(folder.path().join("other").join(crate::state::FILE), "").unwrap();
        let found = read(&[folder.path().to_owned()], Some(&folder.path().join("own")), 0.0, 1).unwrap();
        assert_eq!(found.files, 2);
    }
}
