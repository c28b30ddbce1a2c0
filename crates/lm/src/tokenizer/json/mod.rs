//! Parses and checks a `tokenizer.json` before a tokenizer is built from it.
//!
//! The `tokenizers` crate trusts the file: one that is cut off, a merge into a word that is not there, or a part with
//! odd numbers make it panic, and a pattern may ask it for any amount of memory. So the file is read into the types
//! below, which hold only what BPE needs, and the tokenizer is built from them.

mod parts;

use parts::{Decoder, Normalizer, PostProcessor, PreTokenizer};
use serde::Deserialize;
use std::collections::HashMap;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Tokenizer};

type Checked<T> = Result<T, String>;

/// Ids end here: an embedding has a row for each.
const IDS: u32 = 1 << 24;

/// Tokens that every text begins and ends with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Affixes {
    pub(super) before: Vec<u32>,
    pub(super) after: Vec<u32>,
}

/// Builds a tokenizer from the text of a `tokenizer.json`. Padding and truncation in it say nothing here: texts are
/// tokenized one by one and whole.
pub(super) fn build(json: &str) -> Checked<(Tokenizer, Affixes)> {
    let file: File = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let mut tokenizer = Tokenizer::new(file.model.build()?);
    if let Some(part) = file.normalizer {
        tokenizer.with_normalizer(Some(part.checked()?)).map_err(|e| e.to_string())?;
    }
    if let Some(part) = file.pre_tokenizer {
        tokenizer.with_pre_tokenizer(Some(part.checked()?));
    }
    if let Some(part) = file.decoder {
        tokenizer.with_decoder(Some(part.checked()?));
    }
    add(&mut tokenizer, file.added_tokens)?;
    let [before, after] = file.post_processor.map_or(Ok(Default::default()), PostProcessor::around)?;
    Ok((tokenizer, Affixes { before, after }))
}

/// Adds tokens that are matched before the text is cut.
fn add(tokenizer: &mut Tokenizer, added: Vec<Added>) -> Checked<()> {
    let tokens = added.iter().map(|t| AddedToken {
        content: t.content.clone(),
        single_word: t.single_word,
        lstrip: t.lstrip,
        rstrip: t.rstrip,
        normalized: t.normalized,
        special: t.special,
    });
    tokenizer.add_tokens(tokens.collect::<Vec<_>>()).map_err(|e| e.to_string())?;
    for Added { id, content, .. } in added {
        if tokenizer.token_to_id(&content) != Some(id) {
            return Err(format!(
                "the added token `{content}` cannot have id {id}: ids go on where the vocabulary ends"
            ));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Normalizer>,
    pre_tokenizer: Option<PreTokenizer>,
    post_processor: Option<PostProcessor>,
    decoder: Option<Decoder>,
    model: Bpe,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Bpe {
    // files of long ago have none
    #[serde(rename = "type")]
    kind: Option<String>,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    fuse_unk: Option<bool>,
    byte_fallback: Option<bool>,
    ignore_merges: Option<bool>,
    vocab: Vocab,
    merges: Vec<Merge>,
}

/// Two words that are next to each other become one.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    /// Both with a space between them.
    Line(String),
}

impl Bpe {
    fn build(self) -> Checked<BPE> {
        self.check()?;
        let vocab = self.vocab;
        let merges = self.merges.into_iter().map(|merge| merge.pair(&vocab)).collect::<Checked<Vec<_>>>()?;
        let mut bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .fuse_unk(self.fuse_unk.unwrap_or(false))
            .byte_fallback(self.byte_fallback.unwrap_or(false))
            .ignore_merges(self.ignore_merges.unwrap_or(false));
        if let Some(unknown) = self.unk_token {
            bpe = bpe.unk_token(unknown);
        }
        bpe.build().map_err(|e| e.to_string())
    }

    fn check(&self) -> Checked<()> {
        if let Some(kind) = self.kind.as_deref().filter(|kind| *kind != "BPE") {
            return Err(format!("its model is `{kind}`; BPE is known"));
        }
        if self.dropout.is_some_and(|p| p != 0.0) {
            return Err("its model drops merges at random; set dropout to null".to_owned());
        }
        let parts = [
            ("continuing_subword_prefix", &self.continuing_subword_prefix),
            ("end_of_word_suffix", &self.end_of_word_suffix),
        ];
        if let Some((key, _)) = parts.iter().find(|(_, part)| part.as_ref().is_some_and(|part| !part.is_empty())) {
            return Err(format!("its model has the key {key}, which is empty in those known here"));
        }
        let mut words: HashMap<u32, &str> = HashMap::with_capacity(self.vocab.len());
        for (word, &id) in &self.vocab {
            if id >= IDS {
                return Err(format!("`{word}` has id {id}, expected less than {IDS}"));
            }
            if let Some(other) = words.insert(id, word) {
                let [first, second] = if other < word.as_str() { [other, word] } else { [word, other] };
                return Err(format!("`{first}` and `{second}` both have id {id}"));
            }
        }
        match &self.unk_token {
            Some(unknown) if !self.vocab.contains_key(unknown) => {
                Err(format!("its unk_token `{unknown}` is not in the vocabulary"))
            }
            _ => Ok(()),
        }
    }
}

impl Merge {
    /// The two words; they and what they make are in the vocabulary.
    fn pair(self, vocab: &Vocab) -> Checked<(String, String)> {
        let (left, right) = match self {
            Merge::Pair(left, right) => (left, right),
            Merge::Line(line) => match line.split(' ').collect::<Vec<_>>()[..] {
                [left, right] => (left.to_owned(), right.to_owned()),
                _ => return Err(format!("its merge `{line}` is no pair of words")),
            },
        };
        let both = format!("{left}{right}");
        if let Some(word) = [&left, &right, &both].into_iter().find(|word| !vocab.contains_key(*word)) {
            return Err(format!("its merge of `{left}` and `{right}` needs `{word}`, which is no word of it"));
        }
        Ok((left, right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn whole() -> Value {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9},
            "padding": {"strategy": {"Fixed": 4294967295u32}, "direction": "Left", "pad_id": 0, "pad_token": "x"},
            "added_tokens": [{"id": 3, "content": "<end>", "special": true}],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\s+"}, "behavior": "Isolated", "invert": false}, bytes,
            ]},
            "post_processor": bytes,
            "decoder": bytes,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        })
    }

    fn template(single: Value) -> Value {
        let tokens = json!({"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}});
        json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens})
    }

    #[test]
    fn a_llama_puts_its_beginning_before_a_text_and_spaces_into_words() {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false});
        let single = json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
        let text = json!({
            "added_tokens": [{"id": 3, "content": "<s>", "special": true}],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]},
            "post_processor": {"type": "Sequence", "processors": [bytes, template(single)]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {
                "type": "BPE", "byte_fallback": true,
                "vocab": {"a": 0, "▁": 1, "▁a": 2, "<s>": 3, "<0xC3>": 4, "<0xA9>": 5}, "merges": ["▁ a"],
            },
        });
        let (tokenizer, affixes) = build(&text.to_string()).unwrap();
        let ids = tokenizer.encode_fast("a é", true).unwrap();
        assert_eq!(ids.get_ids(), [2, 1, 4, 5]);
        assert_eq!(affixes, Affixes { before: vec![3], after: vec![] });
        assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), "a é");
    }

    #[test]
    fn a_text_is_neither_padded_nor_cut_whatever_the_file_says() {
        let (tokenizer, _) = build(&whole().to_string()).unwrap();
        let ids = tokenizer.encode_fast("abba<end>", true).unwrap();
        assert_eq!(ids.get_ids(), [2, 1, 0, 3]);
        assert_eq!(tokenizer.decode(ids.get_ids(), false).unwrap(), "abba<end>");
    }

    #[test]
    fn a_template_says_what_texts_begin_and_end_with() {
        let mut json = whole();
        let bytes = json["post_processor"].take();
        let token = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let single = [token("<begin>"), json!({"Sequence": {"id": "A", "type_id": 0}}), token("<end>")];
        let tokens = json!({"<begin>": {"id": "<begin>", "ids": [7], "tokens": ["<begin>"]}, "<end>": {"id": "<end>", "ids": [3], "tokens": ["<end>"]}});
        let template = json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens});
        json["post_processor"] = json!({"type": "Sequence", "processors": [bytes, template]});
        let (_, affixes) = build(&json.to_string()).unwrap();
        assert_eq!(affixes, Affixes { before: vec![7], after: vec![3] });
    }

    #[test]
    fn merges_may_be_lines_and_the_model_may_say_no_type() {
        let mut json = whole();
        json["model"] = json!({"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]});
        let (tokenizer, _) = build(&json.to_string()).unwrap();
        assert_eq!(tokenizer.encode_fast("ab", true).unwrap().get_ids(), [2]);
    }

    #[test]
    fn what_the_tokenizers_crate_would_panic_or_choke_on_is_refused_in_words() {
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let (text, begin) =
            (json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"SpecialToken": {"id": "<s>", "type_id": 0}}));
        let many = json!({"type": "Sequence", "pretokenizers": vec![split("a"); 33]});
        let cases: &[(&str, Value, &str)] = &[
            ("/model/merges", json!([["ab", "ab"]]), "its merge of `ab` and `ab` needs `abab`, which is no word of it"),
            ("/model/merges", json!(["a b c"]), "its merge `a b c` is no pair of words"),
            ("/model/vocab", json!({"a": 0, "b": 0, "ab": 1}), "`a` and `b` both have id 0"),
            ("/model/vocab", json!({"a": 0, "b": 1, "ab": u32::MAX}), "`ab` has id 4294967295, expected less than"),
            ("/model/vocab", json!({"a": -1}), "invalid value: integer `-1`, expected u32"),
            ("/model/type", json!("Unigram"), "its model is `Unigram`; BPE is known"),
            ("/added_tokens/0/id", json!(7), "the added token `<end>` cannot have id 7"),
            ("/decoder", json!({"type": "CTC"}), "unknown variant `CTC`"),
            (
                "/decoder",
                json!({"type": "Strip", "content": "a", "start": 0, "stop": 9}),
                "strips 9 characters of the end",
            ),
            ("/decoder", replace("a", &"b".repeat(17)), "may make a text more than 16 times as long"),
            ("/normalizer", json!({"type": "Prepend", "prepend": "a".repeat(65)}), "puts 65 bytes before a text"),
            ("/normalizer", replace("", "b"), "replaces nothing"),
            (
                "/normalizer",
                json!({"type": "Sequence", "normalizers": vec![replace("a", "aa"); 5]}),
                "more than 16 times",
            ),
            ("/post_processor", template(json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}])), "exactly once"),
            ("/post_processor", template(json!([{"Sequence": {"id": "B", "type_id": 0}}])), "exactly once"),
            (
                "/post_processor",
                template(json!([text, {"SpecialToken": {"id": "?", "type_id": 0}}])),
                "no special token `?`",
            ),
            (
                "/post_processor",
                template(Value::Array([vec![text.clone()], vec![begin.clone(); 65]].concat())),
                "65 tokens",
            ),
            ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "unknown variant `FixedLength`"),
            ("/pre_tokenizer", split("(?:(?=a)b){1000000000}"), "the counts of a pattern multiply to more than 100"),
            ("/pre_tokenizer", split(r"((\p{L}{10}){10}){10}"), "the counts of a pattern multiply to more than 100"),
            ("/pre_tokenizer", split(&"a".repeat(5_000)), "a pattern has 5000 bytes, at most 4096 are taken"),
            ("/pre_tokenizer", split("("), "Parsing error"),
            ("/pre_tokenizer", many, "it has 33 parts one after another, at most 32 are taken"),
        ];
        for (key, value, want) in cases {
            let mut json = whole();
            *json.pointer_mut(key).unwrap_or(&mut Value::Null) = value.clone();
            let error = build(&json.to_string()).err().unwrap_or_else(|| panic!("{key} = {value} was taken"));
            assert!(error.contains(want), "{key}: {error}");
        }
        for (key, value, want) in [
            ("dropout", json!(0.5), "drops merges at random"),
            ("continuing_subword_prefix", json!("###"), "has the key continuing_subword_prefix"),
            ("end_of_word_suffix", json!("</w>"), "has the key end_of_word_suffix"),
            ("unk_token", json!("?"), "its unk_token `?` is not in the vocabulary"),
        ] {
            let mut json = whole();
            json["model"][key] = value;
            let error = build(&json.to_string()).err().unwrap_or_else(|| panic!("{key} was taken"));
            assert!(error.contains(want), "{key}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_cut_off_anywhere_is_an_error() {
        let text = whole().to_string();
        assert!((0..text.len()).all(|end| build(&text[..end]).is_err()));
    }

    #[test]
    fn parts_in_parts_without_end_are_an_error_and_no_overflow_of_the_stack() {
        let text = whole().to_string();
        let deep = r#"{"type":"Sequence","pretokenizers":["#.repeat(100_000);
        let error = build(&text.replacen(r#"{"type":"Sequence","pretokenizers":["#, &deep, 1)).err().unwrap();
        assert!(error.contains("recursion limit exceeded"), "{error}");
    }
}
