//! What to generate and when to stop.

use crate::grammar::Grammar;
use crate::tokenizer::reasoning::ReasoningParser;
use alluvium_ops::Sampling;

/// What to generate and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// The maximum number of new tokens.
    pub max_tokens: usize,
    /// Temperature and filters of the sampling.
    pub sampling: Sampling,
    /// The repetition penalty.
    pub repetition_penalty: RepetitionPenalty,
    /// Subtracted from the logit of each token that the completion has already; 0 disables it.
    pub presence_penalty: f32,
    /// Subtracted from the logit of each token of the completion as often as it occurs there; 0 disables it.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// What the text of the completion must match. `None` allows every text.
    pub grammar: Option<Grammar>,
    /// A limit on the reasoning of the model. `None` disables it.
    pub reasoning_budget: Option<ReasoningBudget>,
    /// The seed of the sampling: the same seed gives the same tokens.
    pub seed: u64,
    /// Stop texts: the completion ends before the first of them that appears. They need a tokenizer.
    pub stop: Vec<String>,
    /// Tokens that end the completion, in addition to those of the tokenizer.
    pub stop_token_ids: Vec<u32>,
    /// Return the log-probability of each generated token and of the `n` most likely alternatives. `None` disables
    /// this.
    pub logprobs: Option<usize>,
    /// Return the log-probability of each token of the prompt after the first, with that of the `n` most likely
    /// alternatives. Tokens that were in a cache already are left out; an engine reads all of them again. `None`
    /// disables this.
    pub prompt_logprobs: Option<usize>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            max_tokens: 256,
            sampling: Sampling::default(),
            repetition_penalty: RepetitionPenalty::default(),
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            grammar: None,
            reasoning_budget: None,
            seed: 0,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

/// Repetition penalty: makes recent tokens less likely.
///
/// # Source
/// Keskar et al. 2019, arXiv:1909.05858; `make_repetition_penalty` of mlx-lm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RepetitionPenalty {
    /// Divides a positive logit and multiplies a negative one; 1 disables it.
    pub penalty: f32,
    /// The number of recent tokens that it applies to.
    pub context_size: usize,
}

/// Disabled, with the context size of mlx-lm.
impl Default for RepetitionPenalty {
    fn default() -> Self {
        RepetitionPenalty { penalty: 1.0, context_size: 20 }
    }
}

/// A limit on the reasoning of a model: after `tokens` tokens the closing tag follows, and the model continues.
#[derive(Clone, Debug, PartialEq)]
pub struct ReasoningBudget {
    /// The maximum number of tokens of the reasoning.
    pub tokens: usize,
    /// Finds the reasoning in the text that follows the prompt: [`ReasoningParser::after`] it.
    pub thinking: ReasoningParser,
}
