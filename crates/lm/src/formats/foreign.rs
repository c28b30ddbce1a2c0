//! What a file is instead of what its name says, by its first bytes.

/// Bytes that are looked at: a tar archive has its name at byte 257, a PyTorch archive that of its first entry at 30.
const HEAD: usize = 512;

/// The beginnings of archives.
const ARCHIVES: [(&[u8], &str); 7] = [
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"BZh", "a bzip2 archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
];

/// Says what a file is, and what to do, where its first bytes are those of another known kind of file.
pub(crate) fn describe(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(HEAD)];
    // a safetensors file begins with the length of its header, which may have any first bytes
    if head.get(4..9) == Some(b"\0\0\0\0{") {
        return None;
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins = |what: &[u8]| text.get(..what.len()).is_some_and(|text| text.eq_ignore_ascii_case(what));
    let holds = |what: &[u8]| head.windows(what.len()).any(|window| window == what);
    if text.starts_with(b"version https://git-lfs") {
        return Some("it is a Git LFS pointer, not the file itself; run `git lfs pull` or fetch the file".to_owned());
    }
    if [&b"<!doctype"[..], b"<html", b"<?xml", b"<head"].iter().any(|tag| begins(tag)) {
        return Some("it is a web page, not the file itself; fetch the file from its download link".to_owned());
    }
    let is_pickle = |bytes: &[u8]| matches!(bytes, [0x80, 2..=5, ..]);
    if head.starts_with(b"PK\x03\x04") && (holds(b"data.pkl") || holds(b"/version")) || is_pickle(head) {
        return Some(format!("it is a PyTorch file; {PYTORCH}"));
    }
    if head.starts_with(b"GGUF") {
        return Some("it is a GGUF file; give it as `--model FILE.gguf`, or convert it: `convert --gguf`".to_owned());
    }
    if head.starts_with(b"\x89HDF\r\n\x1a\n") {
        return Some(format!("it is an HDF5 file; {PYTORCH}"));
    }
    let archive = ARCHIVES.iter().find(|(start, _)| head.starts_with(start)).map(|(_, name)| *name);
    let archive = archive.or(head.get(257..262).filter(|magic| magic == b"ustar").map(|_| "a tar archive"));
    archive.map(|archive| format!("it is {archive}; unpack it and give the folder that it had"))
}

/// What to do with weights that only PyTorch reads.
pub(crate) const PYTORCH: &str = "save the model as safetensors with transformers: \
    `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_our_own_kinds_are_not_foreign() {
        // lengths that begin as a pickle, a gzip archive and a bzip2 archive do
        for length in [64u64, 0x0280, 0x1_8b1f, 0x68_5a42] {
            let mut safetensors = length.to_le_bytes().to_vec();
            safetensors.extend(br#"{"__metadata__":{"format":"pt"}}"#);
            assert_eq!(describe(&safetensors), None, "{length:x}");
        }
        for own in [&br#"{"model_type": "qwen3_5"}"#[..], b"", b"version", b"{% for m in messages %}", b"<"] {
            assert_eq!(describe(own), None, "{own:?}");
        }
    }
}
