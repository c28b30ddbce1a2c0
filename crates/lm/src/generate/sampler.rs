//! The choice of the next token of one sequence.

use super::options::{GenerateOptions, RepetitionPenalty};
use crate::grammar::GrammarState;
use alluvium_core::rng::Rng;
use alluvium_core::{Error, Result, Tensor};
use alluvium_ops::{Sampling, sample};
use std::collections::BTreeMap;

/// The log-probability of a generated token, and those of the most likely ones.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The generated token.
    pub token: u32,
    /// The natural logarithm of its probability among all tokens, at temperature 1 and after the penalties.
    pub logprob: f32,
    /// The most likely tokens with their log-probabilities, most likely first.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    repetition_penalty: RepetitionPenalty,
    presence_penalty: f32,
    frequency_penalty: f32,
    /// How often each token was generated, where a penalty looks at it.
    generated: BTreeMap<u32, u32>,
    logprobs: Option<usize>,
    logit_bias: Vec<(u32, f32)>,
    grammar: Option<GrammarState>,
    rng: Rng,
}

impl Sampler {
    /// A sampler with these options and their seed.
    pub fn new(options: &GenerateOptions) -> Self {
        let GenerateOptions { sampling, repetition_penalty, logprobs, seed, .. } = options;
        Sampler {
            sampling: *sampling,
            repetition_penalty: *repetition_penalty,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
            generated: BTreeMap::new(),
            logprobs: *logprobs,
            logit_bias: options.logit_bias.clone(),
            grammar: options.grammar.as_ref().map(GrammarState::new),
            rng: Rng::new(*seed, "sample"),
        }
    }

    /// Chooses the token that follows `tokens` by row `row` of logits `[B, V]`. Its log-probability comes with it where
    /// the options ask for it.
    ///
    /// # Errors
    /// When an option of the sampling is out of range; when a logit is NaN or +∞ or all are −∞, with the position of
    /// the token that was to be chosen.
    pub fn next(&mut self, logits: &Tensor, tokens: &[u32], row: usize) -> Result<(u32, Option<TokenLogprob>)> {
        let logits = self.penalized(one_row(logits, row)?, tokens)?;
        let logits = match self.grammar.as_mut().map(GrammarState::mask).transpose()?.flatten() {
            Some(allowed) => {
                let mut floats = logits.to_floats()?;
                allowed.hide(&mut floats);
                Tensor::from_slice(&floats, logits.shape(), logits.device())?
            }
            None => logits,
        };
        let chosen =
            sample(&logits, &self.sampling, &[self.rng.uniform() as f32]).and_then(|ids| Ok(ids.ids()?.to_vec()));
        // a GPU reports logits that are not finite by this id
        let token = match chosen.as_ref().map(|ids| ids.first().copied()) {
            Ok(Some(token)) if token != u32::MAX => token,
            _ => {
                check_finite(&logits.to_floats()?, tokens.len())?;
                return Err(chosen.err().unwrap_or_else(|| Error::value("sample", "no token was chosen")));
            }
        };
        let logprob = self.logprob(&logits, token)?;
        *self.generated.entry(token).or_default() += 1;
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(token)?;
        }
        Ok((token, logprob))
    }

    /// Tells the grammar the text that a token completed: it may begin after the reasoning only.
    pub(super) fn record(&mut self, text: &str) {
        if let Some(grammar) = &mut self.grammar {
            grammar.record(text);
        }
    }

    /// Whether nothing can follow by the grammar.
    pub(super) fn is_complete(&self) -> bool {
        self.grammar.as_ref().is_some_and(GrammarState::is_complete)
    }

    /// As [`Sampler::next`] for a token that is given, not chosen.
    pub(super) fn forced(
        &mut self,
        logits: &Tensor,
        tokens: &[u32],
        row: usize,
        token: u32,
    ) -> Result<Option<TokenLogprob>> {
        *self.generated.entry(token).or_default() += 1;
        match self.logprobs {
            Some(_) => self.logprob(&self.penalized(one_row(logits, row)?, tokens)?, token),
            None => Ok(None),
        }
    }

    fn logprob(&self, logits: &Tensor, token: u32) -> Result<Option<TokenLogprob>> {
        self.logprobs.map(|top| token_logprob(&logits.to_floats()?, token, top)).transpose()
    }

    fn penalized(&self, logits: Tensor, tokens: &[u32]) -> Result<Tensor> {
        let logits = self.repetition_penalized(logits, tokens)?;
        let penalties = [("presence", self.presence_penalty), ("frequency", self.frequency_penalty)];
        if let Some((name, penalty)) = penalties.iter().find(|(_, penalty)| !penalty.is_finite()) {
            return Err(Error::value("sample", format!("the {name} penalty is {penalty}, expected a finite value")));
        }
        let has_penalties = penalties.iter().any(|(_, penalty)| *penalty != 0.0) && !self.generated.is_empty();
        if !has_penalties && self.logit_bias.is_empty() {
            return Ok(logits);
        }
        let mut penalized = logits.to_floats()?;
        for &(token, bias) in &self.logit_bias {
            let count = penalized.len();
            match penalized.get_mut(token as usize) {
                Some(x) if bias.is_finite() => *x += bias,
                _ => {
                    let why = format!(
                        "the bias of token {token} is {bias}, expected a finite value and a token below {count}"
                    );
                    return Err(Error::value("sample", why));
                }
            }
        }
        for (&token, &count) in &self.generated {
            if let Some(x) = penalized.get_mut(token as usize) {
                *x -= self.presence_penalty + self.frequency_penalty * count as f32;
            }
        }
        Tensor::from_slice(&penalized, logits.shape(), logits.device())
    }

    fn repetition_penalized(&self, logits: Tensor, tokens: &[u32]) -> Result<Tensor> {
        let RepetitionPenalty { penalty, context_size } = self.repetition_penalty;
        if penalty == 1.0 || context_size == 0 {
            return Ok(logits);
        }
        if !(penalty > 0.0 && penalty.is_finite()) {
            return Err(Error::value("sample", format!("the repetition penalty is {penalty}, expected more than 0")));
        }
        let plain = logits.to_floats()?;
        let mut penalized = plain.clone();
        for &token in &tokens[tokens.len().saturating_sub(context_size)..] {
            // from the plain logit, so that a token is penalized once however often it appears
            if let (Some(x), Some(&was)) = (penalized.get_mut(token as usize), plain.get(token as usize)) {
                *x = if was < 0.0 { was * penalty } else { was / penalty };
            }
        }
        Tensor::from_slice(&penalized, logits.shape(), logits.device())
    }
}

fn one_row(logits: &Tensor, row: usize) -> Result<Tensor> {
    if logits.shape()[0] == 1 { Ok(logits.clone()) } else { logits.rows(row, 1) }
}

/// Refuses logits that no token can be chosen by; `position` is that of the token in its sequence.
fn check_finite(logits: &[f32], position: usize) -> Result<()> {
    let bad = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY);
    let what = match bad {
        Some(id) => format!("the logit of token {id} is {}", logits[id]),
        None if logits.iter().all(|x| *x == f32::NEG_INFINITY) => "all logits are -inf".to_owned(),
        None => return Ok(()),
    };
    let why = "the model's weights or activations are not finite; the checkpoint may be broken or badly converted";
    Err(Error::value("generate", format!("{what} at position {position}: {why}")))
}

pub(super) fn token_logprob(logits: &[f32], token: u32, top: usize) -> Result<TokenLogprob> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - largest).exp()).sum();
    let logprob = |x: f32| (f64::from(x - largest) - sum.ln()) as f32;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let falling = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let top = top.min(order.len());
    if top > 0 {
        order.select_nth_unstable_by(top - 1, falling);
    }
    order.truncate(top);
    order.sort_unstable_by(falling);
    let chosen = logits.get(token as usize).ok_or_else(|| Error::value("sample", "the token has no logit"))?;
    let top_logprobs = order.into_iter().map(|id| (id, logprob(logits[id as usize]))).collect();
    Ok(TokenLogprob { token, logprob: logprob(*chosen), top_logprobs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Device;

    fn row(logits: &[f32]) -> Tensor {
        Tensor::from_slice(logits, [1, logits.len()], &Device::cpu()).unwrap()
    }

    #[test]
    fn a_repeated_token_is_penalized_once_however_often_it_appears() {
        let repetition_penalty = RepetitionPenalty { penalty: 2.0, context_size: 3 };
        let options = GenerateOptions { repetition_penalty, ..GenerateOptions::default() };
        let penalized = |tokens: &[u32]| {
            Sampler::new(&options).penalized(row(&[4.0, -1.0, 3.0, 0.5]), tokens).unwrap().to_vec::<f32>().unwrap()
        };
        assert_eq!(penalized(&[3, 0, 0, 1]), [2.0, -2.0, 3.0, 0.5]);
        assert_eq!(penalized(&[]), [4.0, -1.0, 3.0, 0.5]);
        let (token, _) = Sampler::new(&options).next(&row(&[4.0, -1.0, 3.0, 0.5]), &[0], 0).unwrap();
        assert_eq!(token, 2);
    }

    #[test]
    fn presence_counts_a_generated_token_once_and_frequency_as_often_as_it_occurs() {
        let options = GenerateOptions { presence_penalty: 1.0, frequency_penalty: 0.5, ..GenerateOptions::default() };
        let mut sampler = Sampler::new(&options);
        let logits = row(&[4.0, 3.0, 1.9, -9.0]);
        // tokens of the prompt are not counted; token 0 falls to 2.5, 2.0 and 1.5, token 1 to 1.5
        let tokens: Vec<u32> = (0..5).map(|_| sampler.next(&logits, &[0, 0, 3], 0).unwrap().0).collect();
        assert_eq!(tokens, [0, 1, 0, 0, 2]);
        let infinite = GenerateOptions { presence_penalty: f32::NAN, ..GenerateOptions::default() };
        let error = Sampler::new(&infinite).next(&logits, &[], 0).unwrap_err().to_string();
        assert!(error.contains("the presence penalty is NaN"), "{error}");
    }

    #[test]
    fn logprobs_are_those_of_all_tokens_and_the_most_likely_come_first() {
        let logits = [1.0f32, 4.0, 1.0, 2.0].map(f32::ln);
        let TokenLogprob { token, logprob, top_logprobs } = token_logprob(&logits, 3, 3).unwrap();
        assert!(token == 3 && (logprob - 0.25f32.ln()).abs() < 1e-6);
        assert_eq!(top_logprobs.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 0]);
        assert!((top_logprobs[0].1 - 0.5f32.ln()).abs() < 1e-6);
        assert!(token_logprob(&logits, 0, 9).unwrap().top_logprobs.len() == 4);
    }

    #[test]
    fn logits_that_are_not_finite_are_an_error_that_names_the_position() {
        let mut devices = vec![Device::cpu()];
        devices.extend(alluvium_core::gpu::Gpu::builder().open_for_test().unwrap().map(Device::from));
        let hot = Sampling { temperature: 1.0, ..Sampling::default() };
        for device in &devices {
            for sampling in [Sampling::default(), hot] {
                let mut sampler = Sampler::new(&GenerateOptions { sampling, ..GenerateOptions::default() });
                for (logits, what) in [
                    ([0.0, f32::NAN, 1.0], "the logit of token 1 is NaN"),
                    ([f32::INFINITY, 0.0, 1.0], "the logit of token 0 is inf"),
                    ([f32::NEG_INFINITY; 3], "all logits are -inf"),
                ] {
                    let logits = Tensor::from_slice(&logits, [1, 3], device).unwrap();
                    let error = sampler.next(&logits, &[5, 6], 0).unwrap_err().to_string();
                    let start = format!("generate: {what} at position 2: the model's weights");
                    assert!(error.starts_with(&start), "{device:?}: {error}");
                }
                let masked = Tensor::from_slice(&[f32::NEG_INFINITY, 0.0, 1.0], [1, 3], device).unwrap();
                sampler.next(&masked, &[], 0).unwrap();
            }
        }
    }
}
