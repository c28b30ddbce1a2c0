//! The tokenizer of a GGUF file, as the files of transformers have it.

use crate::formats::gguf::{GgufFile, Value};
use alluvium_core::Result;
use serde_json::{Map, Value as Json, json};
use std::collections::HashSet;

/// The space of SentencePiece.
const SPACE: &str = "▁";

/// The words of GPT-2.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Ends of a message or a text, by their names: ggml stops at each of these control tokens.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "<|end_of_text|>",
    "</s>",
];

/// How a vocabulary cuts text before it merges bytes.
struct Words {
    /// Patterns that cut text one after another.
    patterns: Vec<String>,
    /// A word that is a token is taken whole.
    ignore_merges: bool,
    /// A text begins with the token for that, unless the file says otherwise.
    add_bos: bool,
    /// Text is brought into Unicode's composed form.
    nfc: bool,
}

/// The tokenizer's part of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct TokenizerFiles {
    /// `tokenizer.json`.
    pub(crate) tokenizer: Json,
    /// `tokenizer_config.json`, the chat template included.
    pub(crate) config: Json,
    /// `generation_config.json`.
    pub(crate) generation: Json,
}

/// The kinds of tokens, by their number in ggml.
const UNKNOWN: i128 = 2;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const UNUSED: i128 = 5;

/// The vocabulary of a file.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<i128>,
}

/// The tokenizer of a file; `None` where it has none.
///
/// # Errors
/// When it is of a kind that is not known, or its parts do not fit together.
pub(super) fn tokenizer(gguf: &GgufFile) -> Result<Option<TokenizerFiles>> {
    let Some(kind) = gguf.text("tokenizer.ggml.model")?.filter(|kind| !matches!(*kind, "none" | "no_vocab")) else {
        return Ok(None);
    };
    let vocabulary = Vocabulary::read(gguf)?;
    let flag = |name: &str| gguf.boolean(&format!("tokenizer.ggml.{name}"));
    let (mut json, default_bos) = match kind {
        "gpt2" => {
            let words = words(gguf)?;
            (vocabulary.byte_level(gguf, &words)?, words.add_bos)
        }
        "llama" => {
            let prefix = flag("add_space_prefix")?.unwrap_or(true);
            (vocabulary.sentencepiece(gguf, prefix)?, true)
        }
        other => {
            let why =
                format!("its tokenizer is `{other}`; gpt2 (byte-level BPE) and llama (SentencePiece BPE) are known");
            return Err(gguf.error(why));
        }
    };
    let special = |name: &str| -> Result<Option<(u32, &str)>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = gguf.integer(&key)? else { return Ok(None) };
        let token = vocabulary.tokens.get(id).ok_or_else(|| {
            gguf.error(format!("`{key}` is {id}, the vocabulary has {} tokens", vocabulary.tokens.len()))
        })?;
        Ok(Some((id as u32, token)))
    };
    let (bos, eos) = (special("bos")?, special("eos")?);
    let add_bos = flag("add_bos_token")?.unwrap_or(default_bos) && bos.is_some();
    let add_eos = flag("add_eos_token")?.unwrap_or(false) && eos.is_some();
    json["post_processor"] = template(bos.filter(|_| add_bos), eos.filter(|_| add_eos), kind == "gpt2");
    let mut config = Map::new();
    config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    for (key, name) in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        config.insert(key.to_owned(), special(name)?.map_or(Json::Null, |(_, token)| token.into()));
    }
    config.insert("add_bos_token".to_owned(), add_bos.into());
    config.insert("add_eos_token".to_owned(), add_eos.into());
    config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    if let Some(template) = gguf.text("tokenizer.chat_template")? {
        config.insert("chat_template".to_owned(), template.into());
    }
    let mut ends: Vec<u32> = eos.iter().map(|(id, _)| *id).collect();
    for name in ["eot", "eom"] {
        ends.extend(special(name)?.map(|(id, _)| id));
    }
    let is_end = |(id, token): &(usize, &&str)| vocabulary.kinds[*id] == CONTROL && ENDS.contains(token);
    ends.extend(vocabulary.tokens.iter().enumerate().filter(is_end).map(|(id, _)| id as u32));
    let mut seen = HashSet::new();
    ends.retain(|id| seen.insert(*id));
    let mut generation = Map::new();
    if let Some((id, _)) = bos {
        generation.insert("bos_token_id".to_owned(), id.into());
    }
    generation.insert("eos_token_id".to_owned(), json!(ends));
    Ok(Some(TokenizerFiles { tokenizer: json, config: config.into(), generation: generation.into() }))
}

/// Puts tokens before and after a text.
fn template(bos: Option<(u32, &str)>, eos: Option<(u32, &str)>, is_byte_level: bool) -> Json {
    if bos.is_none() && eos.is_none() {
        return match is_byte_level {
            true => json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true}),
            false => Json::Null,
        };
    }
    let token = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Json> =
        bos.iter().map(|(_, bos)| token(bos)).chain([text]).chain(eos.iter().map(|(_, eos)| token(eos))).collect();
    let tokens: Map<String, Json> = bos
        .iter()
        .chain(&eos)
        .map(|(id, token)| ((*token).to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens})
}

/// How a byte-level vocabulary cuts text, by the name that llama.cpp gives its pattern.
fn words(gguf: &GgufFile) -> Result<Words> {
    let pre = gguf.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let plain = |patterns: &[&str]| Words {
        patterns: patterns.iter().map(|&p| p.to_owned()).collect(),
        ignore_merges: false,
        add_bos: false,
        nfc: false,
    };
    // letters, and how many digits are a word
    let gpt4 = |letters: &str, marks: &str, digits: &str, ends: &str| {
        format!(
            concat!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{}|{}|",
                r" ?[^\s\p{{L}}{}\p{{N}}]+[\r\n{}]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            letters, digits, marks, ends
        )
    };
    let llama3 = gpt4(r"\p{L}+", "", r"\p{N}{1,3}", "");
    let lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+";
    let upper = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*";
    Ok(match pre {
        "gpt-2" | "phi-2" | "olmo" | "gigachat" | "mellum" | "trillion" | "exaone4" => plain(&[GPT2]),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            plain(&[r"\p{N}", GPT2])
        }
        "qwen2" | "deepseek-r1-qwen" | "megrez" | "stablelm2" | "hunyuan" => {
            Words { nfc: pre != "stablelm2", ..plain(&[&gpt4(r"\p{L}+", "", r"\p{N}", "")]) }
        }
        "qwen35" => Words { nfc: true, ..plain(&[&gpt4(r"[\p{L}\p{M}]+", r"\p{M}", r"\p{N}", "")]) },
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "pixtral" | "midm-2.0" | "lfm2" => {
            Words { ignore_merges: true, add_bos: true, ..plain(&[&llama3]) }
        }
        "dbrx" | "smaug-bpe" => plain(&[&llama3]),
        "tekken" => {
            let letters = format!(r"{lower}|[^\r\n\p{{L}}\p{{N}}]?{upper}");
            // no contractions
            let pattern = gpt4(&letters, "", r"\p{N}", "/").replacen(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|", "", 1);
            Words { ignore_merges: true, add_bos: true, ..plain(&[&pattern]) }
        }
        "deepseek-v3" | "hunyuan-dense" => plain(&[
            r"\p{N}{1,3}",
            "[一-龥\u{3040}-ゟ゠-ヿ]+",
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
                r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
        ]),
        other => {
            let why = format!("its pre-tokenizer is `{other}`; gpt-2, smollm, qwen2, qwen35, llama-bpe, tekken and");
            return Err(
                gguf.error(format!("{why} deepseek-v3 are among those known; take the tokenizer of the original"))
            );
        }
    })
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &'a GgufFile) -> Result<Self> {
        let tokens = gguf.array("tokenizer.ggml.tokens")?.unwrap_or_default();
        let tokens: Vec<&str> = tokens.iter().filter_map(text).collect();
        let kinds = match gguf.array("tokenizer.ggml.token_type")? {
            Some(kinds) => kinds.iter().map(|kind| if let Value::Integer(kind) = kind { *kind } else { 0 }).collect(),
            None => vec![1; tokens.len()],
        };
        match tokens.len() {
            0 => Err(gguf.error("`tokenizer.ggml.tokens` is missing or empty")),
            count if count != kinds.len() => {
                Err(gguf.error(format!("it has {count} tokens, but the kinds of {}", kinds.len())))
            }
            _ => Ok(Vocabulary { tokens, kinds }),
        }
    }

    /// The ids of all tokens that are used, the first of each text.
    fn ids(&self) -> Map<String, Json> {
        let mut ids = Map::new();
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, _)| self.kinds[*id] != UNUSED) {
            ids.entry((*token).to_owned()).or_insert_with(|| id.into());
        }
        ids
    }

    /// Tokens that are matched before the text is cut.
    fn added(&self) -> Vec<Json> {
        let is_added = |id: &usize| matches!(self.kinds[*id], CONTROL | USER_DEFINED | UNKNOWN);
        let mut seen = HashSet::new();
        (0..self.tokens.len())
            .filter(is_added)
            .filter(|&id| !self.tokens[id].is_empty() && seen.insert(self.tokens[id]))
            .map(|id| {
                json!({
                    "id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": self.kinds[id] != USER_DEFINED,
                })
            })
            .collect()
    }

    /// A vocabulary of byte-level BPE: GPT-2's and its descendants.
    fn byte_level(&self, gguf: &GgufFile, words: &Words) -> Result<Json> {
        let merges = gguf.array("tokenizer.ggml.merges")?;
        let merges = merges.ok_or_else(|| gguf.error("`tokenizer.ggml.merges` is missing"))?;
        let merges: Vec<&str> = merges.iter().filter_map(text).collect();
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let mut parts: Vec<Json> = words
            .patterns
            .iter()
            .map(|p| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false}))
            .collect();
        parts.push(bytes.clone());
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added(),
            "normalizer": if words.nfc { json!({"type": "NFC"}) } else { Json::Null },
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
            "post_processor": null,
            "decoder": bytes,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": words.ignore_merges, "vocab": self.ids(), "merges": merges,
            },
        }))
    }

    /// A vocabulary of SentencePiece's BPE. The file has scores; a merge makes a token, and those of a high score come
    /// first.
    fn sentencepiece(&self, gguf: &GgufFile, prefix: bool) -> Result<Json> {
        let scores = gguf.array("tokenizer.ggml.scores")?;
        let scores = scores.filter(|scores| scores.len() == self.tokens.len());
        let scores = scores.ok_or_else(|| gguf.error("`tokenizer.ggml.scores` is missing or of another length"))?;
        let score = |id: usize| if let Value::Float(score) = scores[id] { score } else { 0.0 };
        let ids = self.ids();
        let id = |token: &str| ids.get(token).and_then(Json::as_u64);
        let mut merges: Vec<(f64, usize, u64, u64, &str, &str)> = Vec::new();
        for (token_id, token) in self.tokens.iter().enumerate().filter(|(id, _)| self.kinds[*id] == 1) {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(a), Some(b)) = (id(left), id(right)) {
                    merges.push((-score(token_id), token_id, a, b, left, right));
                }
            }
        }
        merges.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
        let merges: Vec<[&str; 2]> = merges.iter().map(|(.., left, right)| [*left, *right]).collect();
        let unknown = self.kinds.iter().position(|&kind| kind == UNKNOWN).map(|id| self.tokens[id]);
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
        let mut normalizers = vec![replace];
        if prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
        }
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added(),
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": ids, "merges": merges,
            },
        }))
    }
}

fn text(value: &Value) -> Option<&str> {
    if let Value::Text(text) = value { Some(text) } else { None }
}
