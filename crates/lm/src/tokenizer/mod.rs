//! Text to token ids and back.

pub mod chat_template;
mod conversation;
mod detokenizer;
mod json;
pub mod reasoning;
mod templates;
pub(crate) mod token_bytes;

use self::json::Affixes;
use self::templates::{Templates, Tools};
pub use conversation::{Content, ContentPart, Conversation, FunctionCall, Message, PromptEnd, ToolCall};
pub use detokenizer::Detokenizer;

use crate::checkpoint::TokenizerFiles;
use crate::formats::atomic::AtomicFile;
use crate::formats::config::{Config, token_ids};
use crate::formats::json::pretty;
use crate::formats::{LARGE, SMALL, foreign, read_text, read_whole};
use alluvium_core::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// The token that ends a text in tokenizers made here.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The pre-tokenization pattern of Qwen3.5, which transformers substitutes for any other.
const WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The tags around thoughts that models are known to use.
const TAGS: [[&str; 2]; 2] = [["<think>", "</think>"], ["<longcat_think>", "</longcat_think>"]];

/// A tokenizer, as `tokenizer.json` describes it, and the files beside it.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    affixes: Affixes,
    json: String,
    config: Value,
    generation: Value,
    templates: Templates,
    eos: Vec<u32>,
    /// Special tokens that are left out of text: all but the tags around thoughts.
    left_out: HashSet<u32>,
    /// Tokens that stand for a byte, where decoding joins runs of them.
    bytes: HashSet<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer of {} words", self.vocab_size())
    }
}

impl Tokenizer {
    /// Reads a folder's `tokenizer.json` and what is beside it, or a `tokenizer.json` itself.
    ///
    /// # Errors
    /// When a file cannot be read or is not what it should be.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        let json = read_text(&file, LARGE).map_err(Error::io(&file, "read"))?;
        let folder = file.parent().unwrap_or(Path::new("."));
        let config = optional(&folder.join("tokenizer_config.json"))?;
        let generation_file = folder.join("generation_config.json");
        let generation = optional(&generation_file)?;
        let templates = Templates::read(folder, &config)?;
        let mut eos = token_ids(generation.get("eos_token_id")).map_err(|why| Error::file(&generation_file, why))?;
        if eos.is_empty() && folder.join("config.json").exists() {
            eos = Config::read(folder)?.eos_token_ids()?;
        }
        Self::parse(json, &file).map(|t| Tokenizer { config, generation, templates, ..t }.with_eos(eos))
    }

    /// As [`Tokenizer::load`], or none where the folder has no `tokenizer.json`.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub fn find(folder: &Path) -> Result<Option<Self>> {
        folder.join("tokenizer.json").exists().then(|| Self::load(folder)).transpose()
    }

    /// The tokenizer of files that were made from another format; errors name `origin`.
    ///
    /// # Errors
    /// As [`Tokenizer::load`].
    pub(crate) fn from_files(files: TokenizerFiles, origin: &Path) -> Result<Self> {
        let TokenizerFiles { tokenizer, config, generation } = files;
        let templates = Templates::of_config(&config);
        let eos = token_ids(generation.get("eos_token_id")).map_err(|why| Error::file(origin, why))?;
        let tokenizer = Self::parse(tokenizer.to_string(), origin)?;
        Ok(Tokenizer { config, generation, templates, ..tokenizer }.with_eos(eos))
    }

    /// Parses the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// When it is not one.
    pub fn from_json(json: &str) -> Result<Self> {
        Self::parse(json.to_owned(), Path::new("tokenizer.json")).map(|t| t.with_eos(vec![]))
    }

    fn parse(json: String, file: &Path) -> Result<Self> {
        let (inner, affixes) = json::build(&json).map_err(|error| {
            let why = foreign::describe(json.as_bytes()).unwrap_or_else(|| error.to_string());
            Error::file(file, format!("not a tokenizer known here: {why}"))
        })?;
        let config = json!({
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": null,
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "unk_token": null,
        });
        let added = inner.get_added_tokens_decoder();
        let is_tag = |token: &str| TAGS.iter().flatten().any(|tag| *tag == token);
        let left_out =
            added.iter().filter(|(_, token)| token.special && !is_tag(&token.content)).map(|(id, _)| *id).collect();
        let has_fallback = json.contains("ByteFallback");
        let byte = |byte: u8| inner.token_to_id(&format!("<0x{byte:02X}>"));
        let bytes = (0..=u8::MAX).filter_map(byte).filter(|_| has_fallback).collect();
        Ok(Tokenizer {
            inner,
            affixes,
            json,
            config,
            generation: Value::Null,
            templates: Templates::default(),
            eos: vec![],
            left_out,
            bytes,
        })
    }

    /// The given ids, and that of the token which the tokenizer's own configuration names.
    fn with_eos(self, mut eos: Vec<u32>) -> Self {
        let named = self.special("eos_token").or(eos.is_empty().then_some(END_OF_TEXT));
        let own = named.and_then(|token| self.token_id(token)).filter(|own| !eos.contains(own));
        eos.extend(own);
        Tokenizer { eos, ..self }
    }

    /// Whether a token stands for a byte that decoding joins with its neighbors.
    fn is_byte(&self, id: u32) -> bool {
        self.bytes.contains(&id)
    }

    /// Trains a byte-level BPE with `vocab_size` tokens on texts; `progress` gets the number of texts read.
    ///
    /// The result is what mlx-lm and transformers take for a Qwen3.5 tokenizer; [`END_OF_TEXT`] is token 0.
    ///
    /// # Errors
    /// [`Kind::Value`](alluvium_core::Kind::Value) when `vocab_size` has no room for every byte and the end of text.
    pub fn train<S: AsRef<str> + Send>(
        texts: impl Iterator<Item = S> + Send,
        vocab_size: usize,
        progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Self> {
        let least = ByteLevel::alphabet().len() + 1;
        if vocab_size < least {
            let why =
                format!("a vocabulary of {vocab_size} was asked for, every byte and the end of text take {least}");
            return Err(Error::value("tokenizer", why));
        }
        let mut inner: tokenizers::Tokenizer = untrained().to_string().parse().map_err(failed)?;
        let trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(END_OF_TEXT, true).normalized(false)])
            .build();
        let read = AtomicUsize::new(0);
        let texts = texts.inspect(|_| progress(read.fetch_add(1, Ordering::Relaxed) + 1));
        inner.train(&mut TrainerWrapper::BpeTrainer(trainer), texts).map_err(failed)?;
        Self::from_json(&inner.to_string(true).map_err(failed)?)
    }

    /// The token ids of a text.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let Affixes { before, after } = &self.affixes;
        Ok([&before[..], &self.encode_without_special_tokens(text)?[..], &after[..]].concat())
    }

    /// As [`Tokenizer::encode`], but nothing is added in front or behind: for text that a template made.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode_without_special_tokens(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.inner.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    /// The tags around what the model thinks, where its vocabulary has them.
    pub fn thinking(&self) -> Option<[&'static str; 2]> {
        TAGS.into_iter().find(|tags| tags.iter().all(|tag| self.token_id(tag).is_some()))
    }

    /// A special token, by its key in `tokenizer_config.json`: `eos_token`.
    pub(crate) fn special(&self, key: &str) -> Option<&str> {
        let token = self.config.get(key)?;
        token.as_str().or_else(|| token["content"].as_str())
    }

    /// The text of token ids. Special tokens are left out, but for the tags around thoughts; bytes that are no UTF-8
    /// become U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let shown: Vec<u32> = ids.iter().copied().filter(|id| !self.left_out.contains(id)).collect();
        self.inner.decode(&shown, false).map_err(failed)
    }

    /// A decoder of ids that come one by one.
    pub fn detokenizer(&self) -> Detokenizer<'_> {
        Detokenizer::new(self)
    }

    /// The id of a token, given as its text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The tokens that end a text: those of `generation_config.json`, else of `config.json`, and always the `eos_token`
    /// of `tokenizer_config.json`.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos
    }

    /// The token that `tokenizer_config.json` puts at the end of a text, where the vocabulary has it: one token, which
    /// need not be among those that a model ends its texts with.
    pub fn end_of_text(&self) -> Option<u32> {
        self.token_id(self.special("eos_token")?)
    }

    /// The rows that an embedding needs: one more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// The Jinja template that turns messages into a prompt, where there is one.
    pub fn chat_template(&self) -> Option<&str> {
        self.templates.get(Tools::None).map(|template| template.source())
    }

    /// The same tokenizer with another chat template, which errors call `origin`.
    pub fn with_chat_template(mut self, origin: &'static str, source: &str) -> Self {
        self.templates = Templates::of(origin, source);
        self
    }

    /// The same tokenizer with a `generation_config.json` that asks for sampling.
    pub fn with_sampling(mut self, temperature: f64, top_p: f64) -> Self {
        self.generation =
            json!({"eos_token_id": self.eos, "do_sample": true, "temperature": temperature, "top_p": top_p});
        self
    }

    /// What `generation_config.json` holds; null where the folder has none.
    pub fn generation_config(&self) -> &Value {
        &self.generation
    }

    /// Writes `tokenizer.json` and the files beside it.
    ///
    /// # Errors
    /// When the system refuses; the old files are then as they were.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let mut staged = Vec::new();
        for (name, text) in self.files()? {
            make_parent(&folder.join(name))?;
            staged.push(AtomicFile::write(&folder.join(name), |out| out.write_all(text.as_bytes()))?);
        }
        staged.into_iter().try_for_each(AtomicFile::commit)
    }

    pub(crate) fn files(&self) -> Result<Vec<(&'static str, String)>> {
        let mut generation = self.generation.clone();
        if generation.is_null() {
            generation = json!({ "eos_token_id": self.eos });
        }
        let mut files = vec![
            ("tokenizer.json", self.json.clone()),
            ("tokenizer_config.json", pretty(&self.config)),
            ("generation_config.json", pretty(&generation)),
        ];
        files.extend(self.templates.files());
        Ok(files)
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::value("tokenizer", error.to_string())
}

fn optional(path: &PathBuf) -> Result<Value> {
    match read_whole(path, SMALL) {
        Ok(text) => crate::formats::json::parse(&text).map_err(|why| Error::file(path, why)),
        // a link that leads nowhere is there, and what it should lead to is wanted
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && path.symlink_metadata().is_err() => Ok(Value::Null),
        Err(e) => Err(Error::io(path, "read")(e)),
    }
}

/// Makes the folder that a file is to be in.
pub(crate) fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(Error::io(parent, "create"))
}

fn untrained() -> Value {
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": {}, "merges": [],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "The delta rule writes a correction: don't forget. Café 日本 🙂 1024\n\n  def f(x):\r\n";

    fn trained() -> Tokenizer {
        Tokenizer::train([TEXT, TEXT, TEXT].into_iter(), 300, &|_| ()).unwrap()
    }

    #[test]
    fn a_trained_tokenizer_gives_any_text_back_and_survives_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = trained();
        tokenizer.save(folder.path()).unwrap();
        let again = Tokenizer::load(folder.path()).unwrap();
        for text in [TEXT, "", "unseen ÄÖÜ \u{1f980}"] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
            assert_eq!(again.encode(text).unwrap(), ids);
        }
        assert_eq!((tokenizer.token_id(END_OF_TEXT), tokenizer.eos_token_ids()), (Some(0), &[0][..]));
        assert_eq!(again.eos_token_ids(), [0]);
        assert!(tokenizer.vocab_size() <= 300);
        assert!(tokenizer.encode("a<|endoftext|>b").unwrap().contains(&0));
    }

    #[test]
    fn a_vocabulary_without_room_for_every_byte_is_refused() {
        let error = Tokenizer::train(["a"].into_iter(), 100, &|_| ()).unwrap_err().to_string();
        assert!(error.starts_with("tokenizer: a vocabulary of 100 was asked for"), "{error}");
    }
}
