//! Sampling: flags go before the model's `generation_config.json`, and that before the defaults.

use crate::output::note;
use alluvium::lm::{GenerateOptions, RepetitionPenalty, Tokenizer};
use alluvium::ops::Sampling;
use anyhow::{Context, bail};
use serde_json::Value;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;

/// Sampling, and what ends a completion.
#[derive(clap::Args)]
pub(crate) struct SamplingArgs {
    /// Sampling temperature; 0 always takes the most likely token [default: generation_config.json, else 0]
    #[arg(long, alias = "temperature", value_name = "X")]
    temp: Option<f32>,
    /// Sample from the K most likely tokens; 0 disables it [default: generation_config.json, else 0]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the most likely tokens whose probabilities sum to P; 1 disables it [default: generation_config.json,
    /// else 1]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Drop tokens less likely than P times the most likely one; 0 disables it [default: generation_config.json, else
    /// 0]
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Repetition penalty; 1 disables it [default: generation_config.json, else 1]
    #[arg(long, alias = "repeat-penalty", value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Number of recent tokens that the repetition penalty looks at
    #[arg(long, alias = "repeat-last-n", value_name = "N", default_value_t = 20)]
    repetition_context_size: usize,
    /// Subtracted from the logit of each token that the completion has already; 0 disables it [default:
    /// generation_config.json, else 0]
    #[arg(long, value_name = "X")]
    presence_penalty: Option<f32>,
    /// Subtracted from the logit of a token for each time it occurs in the completion; 0 disables it [default:
    /// generation_config.json, else 0]
    #[arg(long, value_name = "X")]
    frequency_penalty: Option<f32>,
    /// Seed of the sampling; the same seed gives the same completion [default: random, and printed]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Maximum number of tokens of the reasoning; after them the answer begins
    #[arg(long, value_name = "N")]
    pub(crate) reasoning_budget: Option<usize>,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = some_text, allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Further tokens that end the completion; may be given several times
    #[arg(long, value_name = "TOKEN", num_args = 1..)]
    extra_eos_token: Vec<String>,
}

fn some_text(text: &str) -> Result<String, &'static str> {
    match text {
        "" => Err("expected at least one character"),
        text => Ok(text.to_owned()),
    }
}

/// Parses the number of tokens of a completion. In llama.cpp `-m` is the model.
pub(crate) fn max_tokens(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a number of tokens; the model's flag is --model".to_owned())
}

/// The file's name in a model's folder.
const FILE: &str = "generation_config.json";

impl SamplingArgs {
    /// The options of a generation with the tokenizer of the model in a folder.
    pub(crate) fn options(
        &self,
        max_tokens: usize,
        tokenizer: &Tokenizer,
        model: &Path,
    ) -> anyhow::Result<GenerateOptions> {
        let file = model.join("tokenizer.json");
        let none = |token: &String| format!("--extra-eos-token: there is no token `{token}` in {}", file.display());
        let id = |token: &String| tokenizer.token_id(token).with_context(|| none(token));
        let stop_token_ids = self.extra_eos_token.iter().map(id).collect::<anyhow::Result<_>>()?;
        let mut values = Values::new(tokenizer.generation_config(), model);
        let temperature = values.temperature(self.temp)?;
        let is_greedy = temperature == 0.0;
        let top_k = self.top_k.map(|k| k as f64);
        let mut filters = [("top-k", "top_k", top_k, 0.0), ("top-p", "top_p", self.top_p.map(f64::from), 1.0)]
            .into_iter()
            .chain([("min-p", "min_p", self.min_p.map(f64::from), 0.0)])
            .map(|(flag, key, given, default)| match is_greedy {
                true => Ok(given.unwrap_or(default)),
                false => values.choose(flag, key, given, default),
            })
            .collect::<anyhow::Result<Vec<f64>>>()?
            .into_iter();
        let mut filter = || filters.next().unwrap_or_default();
        let (top_k, top_p, min_p) = (filter() as usize, filter() as f32, filter() as f32);
        let mut penalty = |flag, key, given: Option<f32>, default| {
            values.choose(flag, key, given.map(f64::from), default).map(|penalty| penalty as f32)
        };
        let repetition = penalty("repetition-penalty", "repetition_penalty", self.repetition_penalty, 1.0)?;
        let presence_penalty = penalty("presence-penalty", "presence_penalty", self.presence_penalty, 0.0)?;
        let frequency_penalty = penalty("frequency-penalty", "frequency_penalty", self.frequency_penalty, 0.0)?;
        let seed = self.seed.unwrap_or_else(random_seed);
        values.report(is_greedy, seed);
        Ok(GenerateOptions {
            max_tokens,
            sampling: Sampling { temperature: temperature as f32, top_k, top_p, min_p },
            repetition_penalty: RepetitionPenalty { penalty: repetition, context_size: self.repetition_context_size },
            presence_penalty,
            frequency_penalty,
            seed,
            stop: self.stop.clone(),
            stop_token_ids,
            ..GenerateOptions::default()
        })
    }
}

/// A seed that differs from run to run, short enough to be typed.
fn random_seed() -> u64 {
    RandomState::new().hash_one(std::process::id()) % 1_000_000
}

/// The values of a `generation_config.json`, and what was chosen so far.
struct Values<'a> {
    file: &'a Value,
    model: &'a Path,
    of_flags: Vec<String>,
    of_file: Vec<String>,
}

impl<'a> Values<'a> {
    fn new(file: &'a Value, model: &'a Path) -> Self {
        Values { file, model, of_flags: Vec::new(), of_file: Vec::new() }
    }

    /// The temperature. A file that asks for sampling without naming one means 1, as in transformers; one that asks
    /// for none means 0.
    fn temperature(&mut self, given: Option<f32>) -> anyhow::Result<f64> {
        let key = match self.file.get("do_sample") {
            None | Some(Value::Null) => "temperature",
            Some(Value::Bool(true)) if self.file.get("temperature").is_some() => "temperature",
            Some(Value::Bool(_)) => "do_sample",
            Some(other) => bail!("{}: `do_sample` is {other}, expected true or false", self.path()),
        };
        self.choose("temp", key, given, 0.0)
    }

    fn path(&self) -> String {
        self.model.join(FILE).display().to_string()
    }

    /// The value of a flag, else of the file, else the default.
    fn choose(&mut self, flag: &str, key: &str, given: Option<impl Into<f64>>, default: f64) -> anyhow::Result<f64> {
        let said = match self.file.get(key) {
            None | Some(Value::Null) => None,
            Some(Value::Bool(yes)) if key == "do_sample" => Some(f64::from(u8::from(*yes))),
            Some(value) => match value.as_f64() {
                Some(number) => Some(number),
                None => bail!("{}: `{key}` is {value}, expected a number", self.path()),
            },
        };
        let (value, place) = match (given.map(Into::into), said) {
            (Some(value), _) => (value, Some(&mut self.of_flags)),
            (None, Some(value)) => (value, Some(&mut self.of_file)),
            (None, None) => (default, None),
        };
        if let Some(place) = place.filter(|_| value != default) {
            place.push(format!("{flag} {}", value as f32));
        }
        Ok(value)
    }

    /// Says where the values come from, on standard error.
    fn report(&self, is_greedy: bool, seed: u64) {
        let mut parts = Vec::new();
        if is_greedy {
            parts.push("greedy (--temp X samples)".to_owned());
        }
        for (values, origin) in [(&self.of_flags, "flags"), (&self.of_file, FILE)] {
            if !values.is_empty() {
                parts.push(format!("{} from {origin}", values.join(", ")));
            }
        }
        if !is_greedy {
            parts.push(format!("seed {seed}"));
        }
        note!("sampling  {}", parts.join(" · "));
    }
}
