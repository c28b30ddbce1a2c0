//! The options of a request, as the endpoints share them.

use crate::Server;
use crate::error::ApiError;
use alluvium_lm::grammar::GrammarText;
use alluvium_lm::{GenerateOptions, RepetitionPenalty};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// The most alternatives of a token whose log-probabilities are returned.
const MAX_LOGPROBS: usize = 20;
/// The most stop texts, and their bytes.
const MAX_STOPS: usize = 16;
const MAX_STOP: usize = 1 << 10;
/// The most tokens with a bias.
const MAX_BIASES: usize = 1024;
/// The most completions of a request.
const MAX_CHOICES: usize = 16;

/// Keys of both endpoints.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct RequestOptions {
    pub(crate) model: Option<String>,
    pub(crate) stream: bool,
    pub(crate) stream_options: Option<StreamOptions>,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) max_completion_tokens: Option<usize>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<usize>,
    pub(crate) min_p: Option<f32>,
    pub(crate) seed: Option<u64>,
    pub(crate) stop: Option<Stops>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) n: Option<usize>,
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    pub(crate) response_format: Option<ResponseFormat>,
}

/// What the answer must be.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that a schema describes, in the form of chat completions or in that of responses.
    JsonSchema {
        /// `{"name", "schema"}`
        json_schema: Option<NamedSchema>,
        schema: Option<Value>,
    },
    /// A grammar, by the keys that OpenAI's API has for those of tools.
    Grammar { syntax: GrammarSyntax, definition: String },
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NamedSchema {
    schema: Option<Value>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GrammarSyntax {
    Lark,
    Regex,
}

impl ResponseFormat {
    /// The grammar of the answer; `None` where it may be any text.
    pub(crate) fn grammar(self) -> Result<Option<GrammarText>, ApiError> {
        Ok(match self {
            ResponseFormat::Text => None,
            ResponseFormat::JsonObject => Some(GrammarText::JsonObject),
            ResponseFormat::JsonSchema { json_schema, schema } => {
                let schema = schema.or(json_schema.and_then(|named| named.schema));
                Some(GrammarText::JsonSchema(schema.ok_or_else(|| {
                    ApiError::bad("`response_format` has no schema; give `json_schema: {\"name\", \"schema\"}`")
                })?))
            }
            ResponseFormat::Grammar { syntax: GrammarSyntax::Lark, definition } => Some(GrammarText::Lark(definition)),
            ResponseFormat::Grammar { syntax: GrammarSyntax::Regex, definition } => {
                Some(GrammarText::Regex(definition))
            }
        })
    }
}

/// Options of a stream.
#[derive(Clone, Copy, Default, Deserialize)]
pub(crate) struct StreamOptions {
    #[serde(default)]
    pub(crate) include_usage: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Stops {
    One(String),
    Many(Vec<String>),
}

impl RequestOptions {
    /// Whether a stream ends with the usage.
    pub(crate) fn streams_usage(&self) -> bool {
        self.stream_options.is_some_and(|options| options.include_usage)
    }

    /// The grammar of the answer.
    pub(crate) fn grammar(&self) -> Result<Option<GrammarText>, ApiError> {
        self.response_format.clone().map_or(Ok(None), ResponseFormat::grammar)
    }

    /// The number of completions.
    pub(crate) fn choices(&self) -> Result<usize, ApiError> {
        match self.n.unwrap_or(1) {
            n if (1..=MAX_CHOICES).contains(&n) => Ok(n),
            n => Err(ApiError::bad(format!("`n` is {n}, expected 1 to {MAX_CHOICES}"))),
        }
    }

    /// What to generate after a prompt of this many tokens; the server's defaults where the request says nothing.
    pub(crate) fn generate(
        &self,
        server: &Server,
        prompt: usize,
        logprobs: Option<usize>,
    ) -> Result<GenerateOptions, ApiError> {
        let context = server.options.max_context;
        let room = context.checked_sub(prompt).filter(|&room| room > 0);
        let room = room.ok_or_else(|| {
            let why = format!("the prompt has {prompt} tokens, the context has {context}; shorten the prompt");
            ApiError::bad(why).with_code("context_length_exceeded")
        })?;
        let defaults = &server.options.defaults;
        let mut options = defaults.clone();
        options.max_tokens = self.max_completion_tokens.or(self.max_tokens).unwrap_or(defaults.max_tokens).min(room);
        let within = |key: &str, value: Option<f32>, low: f32, high: f32| match value {
            Some(value) if !(low..=high).contains(&value) => {
                Err(ApiError::bad(format!("`{key}` is {value}, expected {low} to {high}")))
            }
            value => Ok(value),
        };
        let sampling = &mut options.sampling;
        sampling.temperature = within("temperature", self.temperature, 0.0, 2.0)?.unwrap_or(sampling.temperature);
        sampling.top_p = within("top_p", self.top_p, 0.0, 1.0)?.unwrap_or(sampling.top_p);
        sampling.min_p = within("min_p", self.min_p, 0.0, 1.0)?.unwrap_or(sampling.min_p);
        sampling.top_k = self.top_k.unwrap_or(sampling.top_k);
        let penalties = [
            ("presence_penalty", self.presence_penalty, &mut options.presence_penalty),
            ("frequency_penalty", self.frequency_penalty, &mut options.frequency_penalty),
        ];
        for (key, given, penalty) in penalties {
            *penalty = within(key, given, -2.0, 2.0)?.unwrap_or(*penalty);
        }
        if let Some(penalty) = within("repetition_penalty", self.repetition_penalty, 0.01, 10.0)? {
            options.repetition_penalty = RepetitionPenalty { penalty, ..RepetitionPenalty::default() };
        }
        options.seed = self.seed.unwrap_or_else(random_seed);
        options.stop = self.stops()?;
        options.logit_bias = self.biases(server.tokenizer.vocab_size())?;
        if let Some(n) = logprobs.filter(|&n| n > MAX_LOGPROBS) {
            return Err(ApiError::bad(format!("{n} alternatives were asked for, at most {MAX_LOGPROBS} are returned")));
        }
        options.logprobs = logprobs;
        Ok(options)
    }

    fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = match &self.stop {
            None => Vec::new(),
            Some(Stops::One(stop)) => vec![stop.clone()],
            Some(Stops::Many(stops)) => stops.clone(),
        };
        if stops.len() > MAX_STOPS || stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP) {
            return Err(ApiError::bad(format!("`stop` takes {MAX_STOPS} texts of 1 to {MAX_STOP} bytes")));
        }
        Ok(stops)
    }

    fn biases(&self, vocab_size: usize) -> Result<Vec<(u32, f32)>, ApiError> {
        let biases = self.logit_bias.iter().flatten();
        if biases.clone().count() > MAX_BIASES {
            return Err(ApiError::bad(format!("`logit_bias` takes at most {MAX_BIASES} tokens")));
        }
        biases
            .map(|(token, &bias)| match token.parse::<u32>() {
                Ok(id) if (id as usize) < vocab_size && (-100.0..=100.0).contains(&bias) => Ok((id, bias)),
                _ => {
                    let why = format!("`logit_bias` has {token}: {bias}, expected a token below {vocab_size}");
                    Err(ApiError::bad(format!("{why} with -100 to 100")))
                }
            })
            .collect()
    }
}

/// A seed that is not the same twice.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
