//! The split of documents into training and validation text.

use super::Document;
use alluvium_core::rng::Rng;
use alluvium_core::{Error, Result};
use std::collections::HashMap;

/// Documents of both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Documents to train on.
    pub train: Vec<Document>,
    /// Documents to validate on.
    pub validation: Vec<Document>,
}

/// The shortest part of a document that is cut in two, in bytes.
const SHORTEST_PART: usize = 256;

/// Sets `share` of the text, measured in bytes, apart for validation.
///
/// Whole documents are chosen, in an order that depends on `seed` alone; documents with equal text always go to the
/// same side, so that validation text is never trained on. Where the documents are too large for that, the end of the
/// largest one is cut off.
///
/// # Errors
/// [`Kind::Value`](alluvium_core::Kind::Value) when `share` is not in `[0, 1)`, or there is too little text to split.
pub fn split(documents: Vec<Document>, share: f64, seed: u64) -> Result<Split> {
    if !(0.0..1.0).contains(&share) {
        return Err(Error::value("val_split", format!("{share} came, expected a share from 0 to below 1")));
    }
    if share == 0.0 {
        return Ok(Split { train: documents, validation: Vec::new() });
    }
    let total: usize = documents.iter().map(|document| document.text.len()).sum();
    let groups = Groups::of(&documents);
    let mut remaining = ((total as f64 * share) as usize).max(1);
    let target = remaining;
    let mut chosen = vec![false; documents.len()];
    for group in groups.shuffled(seed) {
        let bytes: usize = group.iter().map(|&index| documents[index].text.len()).sum();
        if bytes <= remaining {
            remaining -= bytes;
            group.iter().for_each(|&index| chosen[index] = true);
        }
    }
    let mut split = Split::default();
    let mut cut = match remaining > target / 2 {
        true => groups.largest(&chosen, &documents),
        false => Vec::new(),
    };
    let tail = (remaining / cut.len().max(1)).max(SHORTEST_PART);
    let is_long = |&index: &usize| documents[index].text.len() >= tail + SHORTEST_PART;
    if !cut.iter().all(is_long) {
        // short documents only: the shortest one as a whole, unless that is most of the text
        cut.clear();
        let group = groups.shortest(&documents);
        if remaining == target {
            if group.iter().map(|&index| documents[index].text.len()).sum::<usize>() > total / 2 {
                let why = format!(
                    "there is too little text ({total} bytes) to set some apart for validation; give more text, or none \
                     for validation (val_split = 0)"
                );
                return Err(Error::value("val_split", why));
            }
            group.iter().for_each(|&index| chosen[index] = true);
        }
    }
    for (index, document) in documents.into_iter().enumerate() {
        if cut.contains(&index) {
            let (head, tail) = cut_tail(document, tail);
            split.train.push(head);
            split.validation.push(tail);
        } else if chosen[index] {
            split.validation.push(document);
        } else {
            split.train.push(document);
        }
    }
    Ok(split)
}

/// Indices of documents, grouped by equal text.
struct Groups(Vec<Vec<usize>>);

impl Groups {
    fn of(documents: &[Document]) -> Self {
        let mut by_text: HashMap<&str, usize> = HashMap::new();
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (index, document) in documents.iter().enumerate() {
            let group = *by_text.entry(&document.text).or_insert(groups.len());
            match groups.get_mut(group) {
                Some(group) => group.push(index),
                None => groups.push(vec![index]),
            }
        }
        Groups(groups)
    }

    fn shuffled(&self, seed: u64) -> Vec<&[usize]> {
        let mut order: Vec<&[usize]> = self.0.iter().map(Vec::as_slice).collect();
        Rng::new(seed, "validation split").shuffle(&mut order);
        order
    }

    /// The group of the shortest text.
    fn shortest(&self, documents: &[Document]) -> Vec<usize> {
        self.0.iter().min_by_key(|group| documents[group[0]].text.len()).cloned().unwrap_or_default()
    }

    /// The group of the longest text that was not chosen.
    fn largest(&self, chosen: &[bool], documents: &[Document]) -> Vec<usize> {
        let free = self.0.iter().filter(|group| !chosen[group[0]]);
        free.max_by_key(|group| documents[group[0]].text.len()).cloned().unwrap_or_default()
    }
}

/// Cuts about `bytes` off the end: after a line end, or else after white space, where one is near.
fn cut_tail(document: Document, bytes: usize) -> (Document, Document) {
    let Document { mut text, is_complete } = document;
    let first = text.ceil_char_boundary(text.len() - bytes);
    let near = &text[first..text.ceil_char_boundary(first + bytes / 2)];
    let after = |found: Option<(usize, char)>| found.map(|(at, c)| first + at + c.len_utf8());
    let line = after(near.char_indices().find(|(_, c)| *c == '\n'));
    let space = after(near.char_indices().find(|(_, c)| c.is_whitespace()));
    let tail = text.split_off(line.or(space).unwrap_or(first));
    (Document { text, is_complete: false }, Document { text: tail, is_complete })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(texts: &[String]) -> Vec<Document> {
        texts.iter().map(|text| Document { text: text.clone(), is_complete: true }).collect()
    }

    fn bytes(documents: &[Document]) -> usize {
        documents.iter().map(|document| document.text.len()).sum()
    }

    /// A text of distinct lines.
    fn lines(seed: usize, count: usize) -> String {
        (0..count).map(|i| format!("{seed} line {i}\n")).collect()
    }

    #[test]
    fn a_share_of_the_bytes_is_set_apart_whatever_the_sizes_of_the_documents() {
        let unequal: Vec<String> = (0..20).map(|i| lines(i, if i == 7 { 8_000 } else { 40 })).collect();
        let few = vec![lines(0, 2_000), lines(1, 40_000)];
        let many: Vec<String> = (0..400).map(|i| lines(i, 1 + i % 50)).collect();
        let one_line = vec!["abcdefgh ".repeat(7_000)];
        let no_spaces = vec!["ACGT".repeat(15_000), "é".repeat(3)];
        for texts in [unequal, few, many, one_line, no_spaces] {
            for seed in 0..8 {
                let split = split(documents(&texts), 0.05, seed).unwrap();
                let (train, validation) = (bytes(&split.train), bytes(&split.validation));
                let share = validation as f64 / (train + validation) as f64;
                assert!((0.02..=0.055).contains(&share), "{share} of {} documents, seed {seed}", texts.len());
                assert_eq!(train + validation, texts.iter().map(String::len).sum::<usize>());
            }
        }
    }

    #[test]
    fn equal_documents_go_to_one_side() {
        let mut texts: Vec<String> = (0..30).map(|i| lines(i / 3, 20)).collect();
        texts.push(lines(50, 9_000));
        texts.push(lines(50, 9_000));
        for seed in 0..20 {
            for share in [0.01, 0.2, 0.5] {
                let split = split(documents(&texts), share, seed).unwrap();
                assert!(!split.validation.is_empty() && !split.train.is_empty());
                for held in &split.validation {
                    assert!(split.train.iter().all(|document| !document.text.contains(&held.text)), "seed {seed}");
                }
            }
        }
    }

    #[test]
    fn the_head_of_a_cut_document_does_not_end_it() {
        let split = split(documents(&[lines(0, 3_000)]), 0.1, 0).unwrap();
        let [head, tail] = [&split.train[0], &split.validation[0]];
        assert!(!head.is_complete && tail.is_complete && head.text.ends_with('\n'));
        assert_eq!(head.text.clone() + &tail.text, lines(0, 3_000));
    }

    #[test]
    fn most_of_one_document_can_be_set_apart() {
        let split = split(documents(&[lines(0, 3_000)]), 0.9, 0).unwrap();
        let share = bytes(&split.validation) as f64 / (bytes(&split.train) + bytes(&split.validation)) as f64;
        assert!((0.85..0.91).contains(&share), "{share}");
    }

    #[test]
    fn the_seed_decides_and_too_little_text_is_an_error() {
        let texts: Vec<String> = (0..40).map(|i| lines(i, 30)).collect();
        let by = |seed| split(documents(&texts), 0.1, seed).unwrap();
        assert_eq!(by(1), by(1));
        assert_ne!(by(1), by(2));
        let error = split(documents(&["short".to_owned()]), 0.1, 0).unwrap_err().to_string();
        assert!(error.contains("too little text (5 bytes)") && error.contains("val_split = 0"), "{error}");
        let few =
            split(documents(&["some words".to_owned(), "one".to_owned(), "and more".to_owned()]), 0.1, 0).unwrap();
        assert_eq!((few.validation[0].text.as_str(), few.train.len()), ("one", 2));
        assert_eq!(split(documents(&texts), 0.0, 0).unwrap().train.len(), 40);
        assert!(split(documents(&texts), 1.0, 0).is_err());
    }
}
