//! Damage to files: to their bytes, to the tokens of their text, to the header of a safetensors file.

use alluvium_core::rng::Rng;
use std::ops::Range;

/// What a file is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// JSON, lines of JSON, TOML.
    Text,
    /// Eight bytes of length, a header of JSON, data.
    Safetensors,
}

/// A valid file.
#[derive(Clone, Debug)]
pub(crate) struct Seed {
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
}

impl Seed {
    pub(crate) fn text(text: impl Into<Vec<u8>>) -> Self {
        Seed { kind: Kind::Text, bytes: text.into() }
    }

    pub(crate) fn safetensors(bytes: impl Into<Vec<u8>>) -> Self {
        Seed { kind: Kind::Safetensors, bytes: bytes.into() }
    }
}

/// Values at the edges of what readers expect, and beyond.
const VALUES: &[&str] = &[
    "0",
    "-0",
    "1",
    "-1",
    "2",
    "3",
    "255",
    "65536",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "1e5",
    "1e400",
    "1e-400",
    "0.5",
    "-1.5",
    "NaN",
    "Infinity",
    "inf",
    "nan",
    "0x10",
    "1_000",
    "99999999999999999999999999999999999999999999999999999999999",
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "[[]]",
    "[0,0]",
    "[1,1,1,1,1,1,1]",
    "{\"\":{}}",
    ",",
    ":",
    "=",
    "\"",
    "\n",
    "]",
    "}",
    "[[a]]",
    "a.b.c",
    "\"\"",
    "\" \"",
    "\"a\"",
    "\"ab\"",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "\"\\x\"",
    "\"\\",
    "\"é\\u0301\"",
    "\"../../x\"",
    "\"F64\"",
    "\"BOOL\"",
    "\"F32\"",
    "\"__metadata__\"",
    "\"type\"",
    "\"Sequence\"",
    "\"ByteLevel\"",
    "\"Split\"",
    "\"BPE\"",
    "\"NFC\"",
    "\"Regex\"",
    "\"String\"",
    "\"Removed\"",
    "\"MergedWithNext\"",
    "\"(?=a{99})\"",
    "\"\\\\p{L}{1000}\"",
    "\"((((((((a\"",
    "\"(a+)+$\"",
    "\"(?:a|aa)*(?!b)\"",
    "\"[^\"",
    "\"\\\\K\\\\G\"",
    "\"(?<=a)\\\\1\"",
    "\"x{2}{3}{5}{7}\"",
    "\"\\\\s+(?!\\\\S)\"",
    "\"Prepend\"",
    "\"Replace\"",
    "\"Strip\"",
    "\"Metaspace\"",
    "\"TemplateProcessing\"",
    "\"▁\"",
    "\"muon\"",
    "\"adamw\"",
    "\"small\"",
];

/// One of the seeds with some damage.
pub(super) fn damaged(seeds: &[Seed], rng: &mut Rng) -> Vec<u8> {
    let seed = &seeds[rng.below(seeds.len())];
    let donor = &seeds[rng.below(seeds.len())];
    let header = |seed: &Seed| match seed.kind {
        Kind::Text => 0..seed.bytes.len(),
        Kind::Safetensors => 8..8 + length(&seed.bytes),
    };
    let (own, other) = (header(seed), &donor.bytes[header(donor)]);
    let mut text = seed.bytes[own.clone()].to_vec();
    for _ in 0..[1, 1, 1, 1, 2, 2, 3, 5][rng.below(8)] {
        match rng.below(6) {
            0 => bytes(&mut text, rng),
            _ => tokens(&mut text, other, rng),
        }
    }
    match seed.kind {
        Kind::Text => text,
        Kind::Safetensors => reassembled(text, seed.bytes[own.end..].to_vec(), rng),
    }
}

fn length(file: &[u8]) -> usize {
    file.first_chunk::<8>().map_or(0, |n| u64::from_le_bytes(*n) as usize)
}

/// A safetensors file of a header and data: mostly with the right length, and at times with other data.
fn reassembled(header: Vec<u8>, mut data: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    let length = match rng.below(16) {
        0 => rng.below(2 * header.len() + 2) as u64,
        1 => u64::MAX >> rng.below(64),
        _ => header.len() as u64,
    };
    match rng.below(8) {
        0 => data.truncate(rng.below(data.len() + 1)),
        1 => data.resize(data.len() + 1 + rng.below(64), 7),
        2 => bytes(&mut data, rng),
        _ => {}
    }
    let mut file = [&length.to_le_bytes()[..], &header, &data].concat();
    if rng.below(16) == 0 {
        bytes(&mut file, rng);
    }
    file
}

/// Damage that knows nothing of what the bytes mean.
fn bytes(file: &mut Vec<u8>, rng: &mut Rng) {
    let at = rng.below(file.len());
    let end = (at + 1 + rng.below(32)).min(file.len());
    match rng.below(7) {
        0 if !file.is_empty() => file[at] ^= 1 << rng.below(8),
        1 if !file.is_empty() => file[at] = rng.below(256) as u8,
        2 => file.insert(at, b"0{}[]:,\"\\-9e.\n=#"[rng.below(16)]),
        3 => file.truncate(at),
        4 => drop(file.drain(at..end)),
        5 => {
            let piece = file[at..end].to_vec();
            let to = rng.below(file.len());
            file.splice(to..to, piece);
        }
        // the first bytes of longer characters, and what is none
        _ => drop(
            file.splice(at..at, [b"\xc3".as_slice(), b"\xe2\x82", b"\xf0\x9f\x99", b"\xff"][rng.below(4)].to_vec()),
        ),
    }
}

/// Damage to words, numbers, strings and what brackets hold; `donor` is where parts come from.
fn tokens(text: &mut Vec<u8>, donor: &[u8], rng: &mut Rng) {
    let all = lex(text);
    if all.is_empty() {
        return bytes(text, rng);
    }
    let pick = rng.below(all.len());
    let token = all[pick].clone();
    let value = value_at(text, &all, pick);
    let others = lex(donor);
    match rng.below(32) {
        0..8 => drop(text.splice(token, VALUES[rng.below(VALUES.len())].bytes())),
        8..14 if !others.is_empty() => {
            let from = value_at(donor, &others, rng.below(others.len()));
            text.splice(value, donor[from].iter().copied());
        }
        14..16 => drop(text.drain(value)),
        16..19 => {
            // the same key twice, one more entry of a list
            let copy = [b",".as_slice(), &text[value.clone()]].concat();
            text.splice(value.end..value.end, copy);
        }
        19..24 => {
            let number = std::str::from_utf8(&text[token.clone()]).ok().and_then(|t| t.parse::<i128>().ok());
            let near = number.map(|n| [n + 1, n - 1, -n, 2 * n, 10 * n, n << 32, n / 2][rng.below(7)].to_string());
            text.splice(token, near.unwrap_or_else(|| VALUES[rng.below(26)].to_owned()).into_bytes());
        }
        24..28 => {
            // keys with the values of others, merges of other words
            let other = all[rng.below(all.len())].clone();
            let copy = text[other].to_vec();
            text.splice(token, copy);
        }
        28 => {
            let (open, close) =
                [("[", "]"), ("{\"a\":", "}"), ("{\"type\":\"Sequence\",\"pretokenizers\":[", "]}")][rng.below(3)];
            let depth = 1 << rng.below(13);
            text.splice(value.end..value.end, close.repeat(depth * rng.below(2)).into_bytes());
            text.splice(value.start..value.start, open.repeat(depth).into_bytes());
        }
        29 => {
            let many = vec![b"a09 [{\"\\("[rng.below(9)]; 1 << rng.below(15)];
            text.splice(token.start..token.start, many);
        }
        _ => bytes(text, rng),
    }
}

/// The places of strings, words and single characters.
fn lex(text: &[u8]) -> Vec<Range<usize>> {
    let (mut all, mut at) = (Vec::new(), 0);
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b"_.+-".contains(&b);
    while at < text.len() {
        let start = at;
        at += 1;
        match text[start] {
            b'"' => {
                while at < text.len() && text[at] != b'"' {
                    at += 1 + usize::from(text[at] == b'\\');
                }
                at = (at + 1).min(text.len());
            }
            b if is_word(b) => at += text[at..].iter().take_while(|b| is_word(**b)).count(),
            b if b.is_ascii_whitespace() => continue,
            _ => {}
        }
        all.push(start..at);
    }
    all
}

/// The place of what begins with a token: a list or an object to its end, a key with its value, else the token alone.
fn value_at(text: &[u8], all: &[Range<usize>], first: usize) -> Range<usize> {
    let is = |i: usize, wanted: &[u8]| all.get(i).is_some_and(|t| wanted.contains(&text[t.start]));
    let mut last = first;
    if is(first, b"\"") && is(first + 1, b":") {
        last = (first + 2).min(all.len() - 1);
    }
    let mut depth = 0;
    for i in last..all.len() {
        depth += i32::from(is(i, b"[{")) - i32::from(is(i, b"]}"));
        if depth <= 0 {
            last = i;
            break;
        }
    }
    all[first].start..all[last].end.max(all[first].end)
}
