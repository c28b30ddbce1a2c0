//! Documents to token ids, in memory and time proportional to the text.

use super::Document;
use alluvium_core::Result;
use alluvium_lm::Tokenizer;
use rayon::prelude::*;

/// Longest piece of a document that is tokenized at once, in bytes: a tokenizer takes some 200 bytes of memory for
/// each.
const PIECE: usize = 1 << 18;
/// Longest run of characters of one kind that a tokenizer is trained on: training is quadratic in the length of a word.
const LONGEST_WORD: usize = 64;

/// The token ids of each document; the end-of-text token follows those that are complete.
pub(crate) fn documents(tokenizer: &Tokenizer, documents: &[Document]) -> Result<Vec<Vec<u32>>> {
    let end = tokenizer.eos_token_ids().first().copied();
    let encode = |document: &Document| -> Result<Vec<u32>> {
        let mut pieces = pieces(&document.text);
        let mut ids = pieces.next().map_or(Ok(Vec::new()), |first| tokenizer.encode(first))?;
        for piece in pieces {
            ids.extend(tokenizer.encode_without_special_tokens(piece)?);
        }
        // a tokenizer may add its own end
        let has_end = end.is_some() && ids.last().copied() == end;
        if document.is_complete && !has_end {
            ids.extend(end);
        } else if !document.is_complete && has_end {
            ids.pop();
        }
        Ok(ids)
    };
    documents.par_iter().map(encode).collect()
}

/// A text in pieces of about [`PIECE`] bytes, cut where no token crosses: after the end of a line, before a single
/// space, and only without either between any two characters.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = rest.split_at(if rest.len() > PIECE { cut(rest) } else { rest.len() });
        rest = after;
        Some(piece)
    })
}

/// The place at which a long text is cut: in the second half of its first [`PIECE`] bytes.
fn cut(text: &str) -> usize {
    let (half, end) = (text.floor_char_boundary(PIECE / 2), text.floor_char_boundary(PIECE));
    let bytes = text.as_bytes();
    let is_space = |at: usize| bytes[at].is_ascii_whitespace();
    let line = (half..end).rev().find(|&at| bytes[at - 1] == b'\n' && !is_space(at) && bytes[at].is_ascii());
    let space = || (half..end).rev().find(|&at| bytes[at] == b' ' && !is_space(at - 1) && !is_space(at + 1));
    line.or_else(space).unwrap_or(end)
}

/// The parts of a text in which no run of letters, digits, white space or other characters is longer than
/// [`LONGEST_WORD`]. Texts of words are one part.
pub(crate) fn bounded_words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (mut kind, mut run) = (Kind::Space, 0);
        let long = rest.char_indices().find(|&(_, c)| {
            let next = Kind::of(c);
            run = if next == kind { run + 1 } else { 1 };
            kind = next;
            run > LONGEST_WORD
        });
        let (part, after) = rest.split_at(long.map_or(rest.len(), |(at, _)| at));
        rest = after;
        Some(part)
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letter,
    Digit,
    Space,
    Other,
}

impl Kind {
    fn of(c: char) -> Self {
        match c {
            _ if c.is_alphabetic() => Kind::Letter,
            _ if c.is_numeric() => Kind::Digit,
            _ if c.is_whitespace() => Kind::Space,
            _ => Kind::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn document(text: &str) -> Document {
        Document { text: text.to_owned(), is_complete: true }
    }

    fn tokenizer(text: &str) -> Tokenizer {
        Tokenizer::train(bounded_words(text), 300, &|_| ()).unwrap()
    }

    #[test]
    fn a_text_in_pieces_has_the_tokens_of_the_whole() {
        let line = |i: usize| format!("  fn line_{i}(x: &str) -> usize {{ {i} * x.len() }}\n\n");
        let lines: String = (0..20_000).map(line).collect();
        let words: String = (0..100_000).map(|i| format!("word{} ", i % 97)).collect();
        let tokenizer = tokenizer(&lines[..4_000]);
        for text in [lines, words] {
            assert!(pieces(&text).count() > 2 && pieces(&text).collect::<String>() == text);
            let mut whole = tokenizer.encode(&text).unwrap();
            whole.push(tokenizer.eos_token_ids()[0]);
            assert!(documents(&tokenizer, &[document(&text)]).unwrap() == [whole]);
        }
    }

    #[test]
    fn only_a_complete_document_ends_with_the_end_of_text() {
        let tokenizer = tokenizer("some words and more words");
        let end = tokenizer.eos_token_ids()[0];
        let part = Document { is_complete: false, ..document("some words") };
        let ids = documents(&tokenizer, &[document("some words"), part]).unwrap();
        assert_eq!(ids[0], [&ids[1][..], &[end]].concat());
        assert!(!ids[1].contains(&end));
    }

    #[test]
    fn tokenizers_are_trained_in_linear_time_on_text_without_words() {
        let letters = |n: usize| -> String { (0..n).map(|i| b"ACGT"[(i * i / 7 + i) % 4] as char).collect() };
        let han: String = (0..100_000u32).map(|i| char::from_u32(0x4e00 + i * 7919 % 3000).unwrap()).collect();
        let signs: String = (0..200_000).map(|i| b"+-*/=<>!"[(i * i / 3) % 8] as char).collect();
        for text in [letters(1_000_000), han, signs, " ".repeat(1_000_000)] {
            let started = Instant::now();
            let tokenizer = Tokenizer::train(bounded_words(&text), 400, &|_| ()).unwrap();
            documents(&tokenizer, &[document(&text)]).unwrap();
            // quadratic, each of these took minutes
            assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        }
    }

    #[test]
    fn texts_of_words_are_one_part() {
        assert_eq!(bounded_words("some words,\n\tand 123 more").count(), 1);
        let parts: Vec<&str> = bounded_words("ab").collect();
        assert_eq!(parts, ["ab"]);
        assert!(bounded_words(&"x".repeat(1_000)).all(|part| part.len() <= LONGEST_WORD));
        assert_eq!(bounded_words(&"é".repeat(1_000)).collect::<String>(), "é".repeat(1_000));
    }
}
