//! Damage to files: to their bytes, to the tokens of their text, to the header of a safetensors file.

use alluvium_core::rng::Rng;
use std::ops::Range;

/// What a file is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// JSON, lines of JSON, TOML.
    Text,
    /// Jinja.
    Template,
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

    /// Not every crate that shares this reads templates.
    #[allow(dead_code)]
    pub(crate) fn template(text: impl Into<Vec<u8>>) -> Self {
        Seed { kind: Kind::Template, bytes: text.into() }
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

/// Parts of templates: loops, recursion, what makes much of little.
const PARTS: &[&str] = &[
    "0",
    "-1",
    "1",
    "7",
    "65536",
    "99999",
    "100000",
    "100000000",
    "9223372036854775807",
    "-9223372036854775808",
    "170141183460469231731687303715884105727",
    "1e400",
    "0.1",
    "none",
    "true",
    "[]",
    "{}",
    "''",
    "'a' * 1000000000",
    "'a' * 100000",
    "['a'] * 100000",
    "[messages] * 1000",
    "range(100000)",
    "range(10 ** 30)",
    "range(0, 10, 0)",
    "range(99999) | list",
    "10 ** 10 ** 10",
    "-7 // 0",
    "7 % 0",
    "messages | tojson(indent=10)",
    "messages | tojson | length",
    "messages[::-1]",
    "messages[::0]",
    "messages[-1:99999999999]",
    "'abc'[5:-9:-1]",
    "'%d' | format(1)",
    "'%099999d' | format(1)",
    "'{:>99999}'.format(1)",
    "'a,b'.split(',', -1)",
    "'aaaa'.replace('', 'bb')",
    "'aaaa' | replace('a', 'bbbb')",
    "'x' | indent(100000)",
    "messages | batch(100000, 1) | list",
    "messages | slice(100000) | list",
    "messages | groupby('role')",
    "messages | map(attribute='content') | join('-')",
    "messages | sort(attribute='role')",
    "messages | sum",
    "messages | selectattr('role', 'equalto', 'user') | list",
    "loop.index0",
    "loop(messages)",
    "loop.cycle()",
    "caller()",
    "self",
    "super()",
    "namespace(x=namespace())",
    "dict(a=1)",
    "strftime_now('%Y')",
    "strftime_now('%')",
    "raise_exception('no')",
    "raise_exception()",
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{%-",
    "-%}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}",
    "{% call(x) again(1) %}{{ x }}{% endcall %}",
    "{% set x = messages %}",
    "{% set x %}{{ messages }}{% endset %}",
    "{% if true %}",
    "{% endif %}",
    "{% endfor %}",
    "{% else %}",
    "{% break %}",
    "{% continue %}",
    "{% raw %}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% block b %}{{ self.b() }}{% endblock %}",
    "{% filter upper %}",
    "{% autoescape true %}",
    "{% generation %}",
    "{% do messages.append(1) %}",
];

/// One of the seeds with some damage.
pub(super) fn damaged(seeds: &[Seed], rng: &mut Rng) -> Vec<u8> {
    let seed = &seeds[rng.below(seeds.len())];
    let donor = &seeds[rng.below(seeds.len())];
    let header = |seed: &Seed| match seed.kind {
        Kind::Text | Kind::Template => 0..seed.bytes.len(),
        Kind::Safetensors => 8..8 + length(&seed.bytes),
    };
    let (own, other) = (header(seed), &donor.bytes[header(donor)]);
    let mut text = seed.bytes[own.clone()].to_vec();
    for _ in 0..[1, 1, 1, 1, 2, 2, 3, 5][rng.below(8)] {
        match rng.below(6) {
            0 => bytes(&mut text, rng),
            _ => tokens(&mut text, other, if seed.kind == Kind::Template { PARTS } else { VALUES }, rng),
        }
    }
    match seed.kind {
        Kind::Text | Kind::Template => text,
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

/// What holds itself, as deep as one likes: in JSON, then in templates.
const NESTED: [(&str, &str); 6] = [
    ("[", "]"),
    ("{\"a\":", "}"),
    ("{\"type\":\"Sequence\",\"pretokenizers\":[", "]}"),
    ("(", ")"),
    ("[", "]"),
    ("{% if true %}", "{% endif %}"),
];

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
fn tokens(text: &mut Vec<u8>, donor: &[u8], values: &[&str], rng: &mut Rng) {
    let all = lex(text);
    if all.is_empty() {
        return bytes(text, rng);
    }
    let pick = rng.below(all.len());
    let token = all[pick].clone();
    let value = value_at(text, &all, pick);
    let others = lex(donor);
    match rng.below(32) {
        0..8 => drop(text.splice(token, values[rng.below(values.len())].bytes())),
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
            let near = number
                .filter(|n| n.unsigned_abs() < 1 << 90)
                .map(|n| [n + 1, n - 1, -n, 2 * n, 10 * n, n << 32, n / 2][rng.below(7)].to_string());
            text.splice(token, near.unwrap_or_else(|| values[rng.below(26)].to_owned()).into_bytes());
        }
        24..28 => {
            // keys with the values of others, merges of other words
            let other = all[rng.below(all.len())].clone();
            let copy = text[other].to_vec();
            text.splice(token, copy);
        }
        28 => {
            let (open, close) = NESTED[rng.below(3) + if std::ptr::eq(values, PARTS) { 3 } else { 0 }];
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
