//! The options of a request, as the endpoints share them.

use crate::Server;
use crate::error::ApiError;
use alluvium_lm::{GenerateOptions, RepetitionPenalty};
use serde::Deserialize;
use serde_json::Value;

/// The most alternatives of a token whose log-probabilities are returned.
const MAX_LOGPROBS: usize = 20;
/// The most stop texts, and their bytes.
const MAX_STOPS: usize = 16;
const MAX_STOP: usize = 1 << 10;
/// The most completions of a request.
const MAX_CHOICES: usize = 16;

/// Keys of both endpoints.
#[derive(Deserialize)]
pub(crate) struct RequestOptions {
    #[serde(default)]
    pub(crate) stream: bool,
    #[serde(default)]
    pub(crate) stream_options: StreamOptions,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    seed: Option<u64>,
    stop: Option<Stops>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    n: Option<usize>,
    logit_bias: Option<Value>,
    response_format: Option<Value>,
}

/// Options of a stream.
#[derive(Default, Deserialize)]
pub(crate) struct StreamOptions {
    #[serde(default)]
    pub(crate) include_usage: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stops {
    One(String),
    Many(Vec<String>),
}

impl RequestOptions {
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
        self.refuse_unknown()?;
        let context = server.options.max_context;
        let room = context.checked_sub(prompt).filter(|&room| room > 0);
        let room = room.ok_or_else(|| {
            ApiError::bad(format!("the prompt has {prompt} tokens, the context has {context}; shorten the prompt"))
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

    /// Refuses what would be ignored in silence.
    fn refuse_unknown(&self) -> Result<(), ApiError> {
        let is_set = |value: &Option<Value>| match value {
            None | Some(Value::Null) => false,
            Some(Value::Object(keys)) => !keys.is_empty() && keys.get("type") != Some(&"text".into()),
            Some(_) => true,
        };
        for (key, value) in [("logit_bias", &self.logit_bias), ("response_format", &self.response_format)] {
            if is_set(value) {
                return Err(ApiError::bad(format!("`{key}` is not supported; leave it out")));
            }
        }
        Ok(())
    }
}

/// A seed that is not the same twice.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
