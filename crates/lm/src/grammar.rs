//! Grammars: what the text of a completion must match, token by token.
//!
//! `llguidance` parses JSON schemas, Lark grammars and regular expressions and tells which tokens may follow. The size
//! of a grammar and the work of a step are bounded.

use crate::tokenizer::Tokenizer;
use crate::tokenizer::reasoning::ReasoningParser;
use crate::tokenizer::token_bytes::TokenBytes;
use alluvium_core::{Error, Result};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of the text of a grammar.
const MAX_BYTES: usize = 1 << 18;
/// Work of one step in `llguidance`'s units, some ten milliseconds at most.
const STEP_FUEL: u64 = 200_000;

/// The text of a grammar.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarText {
    /// JSON that a schema describes.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A grammar in `llguidance`'s variant of Lark.
    Lark(String),
    /// A regular expression, which the whole text matches.
    Regex(String),
}

impl GrammarText {
    fn bytes(&self) -> usize {
        match self {
            GrammarText::JsonSchema(schema) => schema.to_string().len(),
            GrammarText::JsonObject => 0,
            GrammarText::Lark(text) | GrammarText::Regex(text) => text.len(),
        }
    }

    fn parse(self) -> TopLevelGrammar {
        match self {
            GrammarText::JsonSchema(schema) => TopLevelGrammar::from_json_schema(with_bounded_space(schema)),
            GrammarText::JsonObject => TopLevelGrammar::from_json_schema(with_bounded_space(json!({"type": "object"}))),
            GrammarText::Lark(text) => TopLevelGrammar::from_lark(text),
            GrammarText::Regex(text) => TopLevelGrammar::from_regex(&text),
        }
    }
}

/// A schema whose JSON has a line break and 16 spaces at most between two tokens, where it does not say otherwise: a
/// small model may write space for ever.
pub fn with_bounded_space(mut schema: Value) -> Value {
    if let Some(object) = schema.as_object_mut() {
        let options = || json!({"whitespace_flexible": true, "whitespace_pattern": r"\n\x20{0,16}|\x20{1,16}"});
        object.entry("x-guidance").or_insert_with(options);
    }
    schema
}

/// Compiles grammars for the tokens of a tokenizer.
pub struct GrammarCompiler {
    factory: ParserFactory,
}

impl std::fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrammarCompiler")
    }
}

impl GrammarCompiler {
    /// A compiler for this tokenizer; it takes a moment for large vocabularies.
    ///
    /// # Errors
    /// When no token ends a text.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self> {
        let eos = tokenizer.eos_token_ids();
        let last =
            *eos.first().ok_or_else(|| Error::value("grammar", "the tokenizer has no token that ends a text"))?;
        let words: Vec<Vec<u8>> = tokenizer
            .token_bytes()
            .into_iter()
            .map(|token| match token {
                TokenBytes::Text(bytes) => bytes,
                TokenBytes::Special(name) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
                TokenBytes::None => Vec::new(),
            })
            .collect();
        let info = TokRxInfo::new(words.len() as u32, last);
        let known: Vec<u32> = eos.iter().copied().filter(|&id| (id as usize) < words.len()).collect();
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&known);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(failed)?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.step_lexer_fuel = STEP_FUEL;
        limits.verbose_errors = false;
        Ok(GrammarCompiler { factory })
    }

    /// Compiles a grammar.
    ///
    /// # Errors
    /// When it is not one, is too large, or has what is not supported.
    pub fn compile(&self, text: GrammarText) -> Result<Grammar> {
        let bytes = text.bytes();
        if bytes > MAX_BYTES {
            return Err(Error::value("grammar", format!("{bytes} bytes came, expected at most {MAX_BYTES}")));
        }
        let mut matcher = Matcher::new(self.factory.create_parser(text.clone().parse()));
        if let Some(why) = matcher.get_error() {
            return Err(failed(why));
        }
        // the first step finds what only appears there
        matcher.compute_mask().map_err(failed)?;
        Ok(Grammar { text, matcher: Arc::new(Mutex::new(matcher)), after: None })
    }
}

fn failed(why: impl std::fmt::Display) -> Error {
    let why = why.to_string();
    Error::value("grammar", why.lines().next().unwrap_or("failed").to_owned())
}

/// What the text of a completion must match; made by a [`GrammarCompiler`].
#[derive(Clone)]
pub struct Grammar {
    text: GrammarText,
    matcher: Arc<Mutex<Matcher>>,
    /// The reasoning after which the grammar begins.
    after: Option<ReasoningParser>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").field("text", &self.text).finish_non_exhaustive()
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.after == other.after
    }
}

impl Grammar {
    /// The same, but reasoning that the prompt has begun comes before what must match.
    pub fn after_reasoning(self, reasoning: ReasoningParser) -> Self {
        Grammar { after: Some(reasoning), ..self }
    }
}

/// The place of a completion in its grammar.
pub(crate) struct GrammarState {
    matcher: Matcher,
    after: Option<ReasoningParser>,
}

impl std::fmt::Debug for GrammarState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GrammarState")
    }
}

/// The tokens that may follow.
pub(crate) struct Allowed(SimpleVob);

impl Allowed {
    /// Sets the logits of all other tokens to −∞.
    pub(crate) fn hide(&self, logits: &mut [f32]) {
        for (token, logit) in logits.iter_mut().enumerate() {
            if token >= self.0.len() || !self.0.is_allowed(token as u32) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

impl GrammarState {
    pub(crate) fn new(grammar: &Grammar) -> Self {
        let matcher = grammar.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        GrammarState { matcher, after: grammar.after.clone() }
    }

    fn is_waiting(&self) -> bool {
        self.after.as_ref().is_some_and(ReasoningParser::is_thinking)
    }

    /// The tokens that may follow; `None` where all may.
    pub(crate) fn mask(&mut self) -> Result<Option<Allowed>> {
        match self.is_waiting() {
            true => Ok(None),
            false => self.matcher.compute_mask_or_eos().map(|mask| Some(Allowed(mask))).map_err(failed),
        }
    }

    /// Takes the chosen token.
    pub(crate) fn accept(&mut self, token: u32) -> Result<()> {
        if self.is_waiting() || self.matcher.is_stopped() {
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(failed)
    }

    /// Takes the text that a token completed.
    pub(crate) fn record(&mut self, text: &str) {
        if let Some(reasoning) = &mut self.after {
            reasoning.push(text);
        }
    }

    /// Whether nothing can follow.
    pub(crate) fn is_complete(&self) -> bool {
        !self.is_waiting() && self.matcher.is_stopped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler() -> (Tokenizer, GrammarCompiler) {
        let tokenizer =
            Tokenizer::train(["{\"a\": true, \"b\": [1, 2]} <tool_call>"].into_iter(), 300, &|_| ()).unwrap();
        let compiler = GrammarCompiler::new(&tokenizer).unwrap();
        (tokenizer, compiler)
    }

    /// Whether each token of a text may follow, and whether the text may end there.
    fn accepts(text: GrammarText, candidate: &str) -> bool {
        let (tokenizer, compiler) = compiler();
        let mut state = GrammarState::new(&compiler.compile(text).unwrap());
        for token in tokenizer.encode(candidate).unwrap() {
            let mut logits = vec![0.0; tokenizer.vocab_size() + 3];
            state.mask().unwrap().unwrap().hide(&mut logits);
            // rows past the vocabulary are never allowed
            assert!(logits[tokenizer.vocab_size()..].iter().all(|x| *x == f32::NEG_INFINITY));
            if logits[token as usize] != 0.0 {
                return false;
            }
            state.accept(token).unwrap();
        }
        let mut logits = vec![0.0; tokenizer.vocab_size()];
        let end = tokenizer.eos_token_ids()[0] as usize;
        state.mask().unwrap().unwrap().hide(&mut logits);
        state.is_complete() || logits[end] == 0.0
    }

    #[test]
    fn a_schema_a_grammar_and_an_expression_accept_what_they_describe() {
        let schema = json!({
            "type": "object", "properties": {"a": {"$ref": "#/$defs/flag"}}, "required": ["a"],
            "additionalProperties": false, "$defs": {"flag": {"type": "boolean"}},
        });
        let schema = || GrammarText::JsonSchema(schema.clone());
        assert!(accepts(schema(), "{\"a\": true}") && accepts(schema(), "{\n  \"a\":false\n}"));
        for wrong in ["{\"a\": 1}", "{\"b\": true}", "{}", "true", "{\"a\": true} x", "{                    \"a\""] {
            assert!(!accepts(schema(), wrong), "{wrong}");
        }
        assert!(accepts(GrammarText::JsonObject, "{\"x\": [1, {\"y\": null}]}"));
        assert!(!accepts(GrammarText::JsonObject, "[1]"));
        assert!(accepts(GrammarText::Regex("[a-c]{2,3}".to_owned()), "abc"));
        assert!(!accepts(GrammarText::Regex("[a-c]{2,3}".to_owned()), "a"));
        let lark = || GrammarText::Lark("start: \"<tool_call>\" /[0-9]+/ \"!\"".to_owned());
        assert!(accepts(lark(), "<tool_call>12!") && !accepts(lark(), "<tool_call>12"));
    }

    #[test]
    fn a_grammar_that_is_wrong_or_too_large_is_refused_in_words() {
        let (_, compiler) = compiler();
        let error = |text| compiler.compile(text).unwrap_err().to_string();
        assert!(error(GrammarText::Lark("start: [".to_owned())).starts_with("grammar: "));
        assert!(error(GrammarText::JsonSchema(json!({"type": "colour"}))).starts_with("grammar: "));
        assert!(error(GrammarText::Regex("x".repeat(MAX_BYTES + 1))).contains("expected at most 262144"));
        let remote = json!({"$ref": "https://example.org/schema.json"});
        assert!(error(GrammarText::JsonSchema(remote)).starts_with("grammar: "));
    }

    #[test]
    fn a_grammar_begins_after_the_reasoning() {
        let (tokenizer, compiler) = compiler();
        let reasoning = ReasoningParser::after("<think>", Some(["<think>", "</think>"]));
        let grammar = compiler.compile(GrammarText::JsonObject).unwrap().after_reasoning(reasoning);
        let mut state = GrammarState::new(&grammar);
        assert!(state.mask().unwrap().is_none() && !state.is_complete());
        state.accept(tokenizer.encode("a").unwrap()[0]).unwrap();
        state.record("a</think>");
        assert!(state.mask().unwrap().is_some());
    }
}
