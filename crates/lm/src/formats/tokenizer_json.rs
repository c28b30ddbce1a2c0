//! What a `tokenizer.json` may hold, checked before any of it is built.
//!
//! The `tokenizers` crate trusts the file: one that is cut off, a merge into a word that is not there, or a part with
//! odd numbers make it panic, and a pattern may ask it for any amount of memory. So the file is read into the types
//! below, which hold only what byte-level BPE needs, and the tokenizer is built from them.

use serde::Deserialize;
use std::collections::HashMap;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{Lowercase, NFC, NFD, NFKC, NFKD};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer, normalizers,
    pre_tokenizers,
};

type Checked<T> = Result<T, String>;

/// Ids end here: an embedding has a row for each.
const IDS: u32 = 1 << 24;

/// The longest pattern. Patterns in use have some hundred bytes.
const LONGEST_PATTERN: usize = 4096;

/// The most copies of a part of a pattern that its counts, `{n}`, may ask for: each copy is a part of the program.
const COPIES: usize = 100;

/// The most parts that cut text, one after another.
const PARTS: usize = 32;

/// Builds a tokenizer from the text of a `tokenizer.json`. Padding and truncation in it say nothing here: texts are
/// tokenized one by one and whole.
pub(super) fn build(json: &str) -> Checked<(Tokenizer, Affixes)> {
    let file: File = serde_json::from_str(json).map_err(|e| e.to_string())?;
    let mut tokenizer = Tokenizer::new(file.model.build()?);
    if let Some(part) = file.normalizer {
        tokenizer.with_normalizer(Some(part.build())).map_err(|e| e.to_string())?;
    }
    if let Some(part) = file.pre_tokenizer {
        if part.parts() > PARTS {
            return Err(format!("its pre_tokenizer has {} parts, at most {PARTS} are taken", part.parts()));
        }
        tokenizer.with_pre_tokenizer(Some(part.build()?));
    }
    let affixes = file.post_processor.map(PostProcessor::affixes).transpose()?.unwrap_or_default();
    tokenizer.with_decoder(file.decoder.map(Decoder::build));
    add(&mut tokenizer, file.added_tokens)?;
    Ok((tokenizer, affixes))
}

/// Tokens that every text begins and ends with.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Affixes {
    pub(super) before: Vec<u32>,
    pub(super) after: Vec<u32>,
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
#[serde(tag = "type")]
#[allow(clippy::upper_case_acronyms)] // as the file spells them
enum Normalizer {
    NFC,
    NFD,
    NFKC,
    NFKD,
    Lowercase,
    Sequence { normalizers: Vec<Normalizer> },
}

impl Normalizer {
    fn build(self) -> NormalizerWrapper {
        match self {
            Normalizer::NFC => NormalizerWrapper::NFC(NFC),
            Normalizer::NFD => NormalizerWrapper::NFD(NFD),
            Normalizer::NFKC => NormalizerWrapper::NFKC(NFKC),
            Normalizer::NFKD => NormalizerWrapper::NFKD(NFKD),
            Normalizer::Lowercase => NormalizerWrapper::Lowercase(Lowercase),
            Normalizer::Sequence { normalizers } => NormalizerWrapper::Sequence(normalizers::Sequence::new(
                normalizers.into_iter().map(Normalizer::build).collect(),
            )),
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PreTokenizer {
    Split {
        pattern: SplitPattern,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    ByteLevel(Bytes),
    Digits {
        #[serde(default)]
        individual_digits: bool,
    },
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
}

impl PreTokenizer {
    fn parts(&self) -> usize {
        match self {
            PreTokenizer::Sequence { pretokenizers } => pretokenizers.iter().map(PreTokenizer::parts).sum(),
            _ => 1,
        }
    }

    fn build(self) -> Checked<PreTokenizerWrapper> {
        Ok(match self {
            PreTokenizer::Split { pattern, behavior, invert } => {
                bounded(&pattern)?;
                PreTokenizerWrapper::Split(Split::new(pattern, behavior, invert).map_err(|e| e.to_string())?)
            }
            PreTokenizer::ByteLevel(bytes) => PreTokenizerWrapper::ByteLevel(bytes.build()),
            PreTokenizer::Digits { individual_digits } => PreTokenizerWrapper::Digits(Digits::new(individual_digits)),
            PreTokenizer::Sequence { pretokenizers } => {
                let parts = pretokenizers.into_iter().map(PreTokenizer::build).collect::<Checked<_>>()?;
                PreTokenizerWrapper::Sequence(pre_tokenizers::sequence::Sequence::new(parts))
            }
        })
    }
}

/// Holds a pattern's size against what one can need: how long it is, and how often its counts repeat its parts.
fn bounded(pattern: &SplitPattern) -> Checked<()> {
    let (SplitPattern::String(text) | SplitPattern::Regex(text)) = pattern;
    if text.len() > LONGEST_PATTERN {
        return Err(format!("a pattern has {} bytes, at most {LONGEST_PATTERN} are taken", text.len()));
    }
    let counts = text.split('{').skip(1).filter_map(|rest| {
        let inside = rest.split_once('}')?.0;
        let largest = inside.split(',').map(str::trim).filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
        largest.filter(|n| !n.is_empty()).map(|n| n.parse().unwrap_or(usize::MAX)).max()
    });
    // in one another they multiply
    let copies = counts.fold(1, |copies: usize, n| copies.saturating_mul(n.max(1)));
    if copies > COPIES {
        return Err(format!("the counts of a pattern multiply to more than {COPIES}"));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PostProcessor {
    /// Moves offsets, which nobody here asks for.
    ByteLevel(#[allow(dead_code)] Bytes),
    TemplateProcessing {
        single: Vec<Piece>,
        special_tokens: HashMap<String, Special>,
    },
    Sequence {
        processors: Vec<PostProcessor>,
    },
}

/// A part of the template that a text is put into.
#[derive(Deserialize)]
enum Piece {
    Sequence {
        #[serde(rename = "id")]
        _id: String,
    },
    SpecialToken {
        id: String,
    },
}

#[derive(Deserialize)]
struct Special {
    ids: Vec<u32>,
}

impl PostProcessor {
    fn affixes(self) -> Checked<Affixes> {
        match self {
            PostProcessor::ByteLevel(_) => Ok(Affixes::default()),
            PostProcessor::TemplateProcessing { single, special_tokens } => {
                let (mut affixes, mut texts) = (Affixes::default(), 0);
                for piece in single {
                    let Piece::SpecialToken { id } = piece else {
                        texts += 1;
                        continue;
                    };
                    let token = special_tokens.get(&id);
                    let token =
                        token.ok_or_else(|| format!("the template's token `{id}` is not among its special_tokens"))?;
                    let side = if texts == 0 { &mut affixes.before } else { &mut affixes.after };
                    side.extend(&token.ids);
                }
                match texts {
                    1 => Ok(affixes),
                    texts => Err(format!("the template has {texts} places for a text, 1 is taken")),
                }
            }
            PostProcessor::Sequence { processors } => {
                let mut all = Affixes::default();
                // each wraps what those before it made
                for processor in processors {
                    let Affixes { before, after } = processor.affixes()?;
                    all.before = [before, all.before].concat();
                    all.after.extend(after);
                }
                Ok(all)
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum Decoder {
    ByteLevel(Bytes),
}

impl Decoder {
    fn build(self) -> DecoderWrapper {
        let Decoder::ByteLevel(bytes) = self;
        DecoderWrapper::ByteLevel(bytes.build())
    }
}

#[derive(Deserialize)]
struct Bytes {
    add_prefix_space: bool,
    #[serde(default = "yes")]
    trim_offsets: bool,
    #[serde(default = "yes")]
    use_regex: bool,
}

fn yes() -> bool {
    true
}

impl Bytes {
    fn build(self) -> ByteLevel {
        ByteLevel::new(self.add_prefix_space, self.trim_offsets, self.use_regex)
    }
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
            return Err(format!("its model has the key {key}, which a byte-level one leaves empty"));
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
        let many = json!({"type": "Sequence", "pretokenizers": vec![split("a"); 33]});
        let cases: &[(&str, Value, &str)] = &[
            ("/model/merges", json!([["ab", "ab"]]), "its merge of `ab` and `ab` needs `abab`, which is no word of it"),
            ("/model/merges", json!(["a b c"]), "its merge `a b c` is no pair of words"),
            ("/model/vocab", json!({"a": 0, "b": 0, "ab": 1}), "`a` and `b` both have id 0"),
            ("/model/vocab", json!({"a": 0, "b": 1, "ab": u32::MAX}), "`ab` has id 4294967295, expected less than"),
            ("/model/vocab", json!({"a": -1}), "invalid value: integer `-1`, expected u32"),
            ("/model/type", json!("Unigram"), "its model is `Unigram`; BPE is known"),
            ("/added_tokens/0/id", json!(7), "the added token `<end>` cannot have id 7"),
            ("/decoder", json!({"type": "Strip", "content": "a", "start": 0, "stop": 9}), "unknown variant `Strip`"),
            ("/post_processor", json!({"type": "RobertaProcessing"}), "unknown variant `RobertaProcessing`"),
            (
                "/post_processor",
                json!({"type": "TemplateProcessing", "single": [], "special_tokens": {}}),
                "has 0 places",
            ),
            ("/pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "unknown variant `FixedLength`"),
            ("/pre_tokenizer", split("(?:(?=a)b){1000000000}"), "the counts of a pattern multiply to more than 100"),
            ("/pre_tokenizer", split(r"((\p{L}{10}){10}){10}"), "the counts of a pattern multiply to more than 100"),
            ("/pre_tokenizer", split(&"a".repeat(5_000)), "a pattern has 5000 bytes, at most 4096 are taken"),
            ("/pre_tokenizer", split("("), "Parsing error"),
            ("/pre_tokenizer", many, "its pre_tokenizer has 33 parts, at most 32 are taken"),
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
