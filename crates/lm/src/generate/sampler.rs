//! The choice of the next token of one text.

use super::Options;
use alluvium_core::rng::Rng;
use alluvium_core::{Error, Result, Tensor};
use alluvium_ops::{Sampling, sample};

/// What tokens cost that were there before.
///
/// Source: Keskar et al. 2019, arXiv:1909.05858; `make_repetition_penalty` of mlx-lm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repetition {
    /// What a positive logit is divided by and a negative one multiplied with; 1 is off.
    pub penalty: f32,
    /// How many of the last tokens count.
    pub context: usize,
}

/// Off, with the context that mlx-lm has.
impl Default for Repetition {
    fn default() -> Self {
        Repetition { penalty: 1.0, context: 20 }
    }
}

/// How likely a token was, and which were likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct Likely {
    /// The logarithm of its probability at temperature 1, of all tokens.
    pub logprob: f32,
    /// The likeliest tokens with the same of theirs.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one text.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    repetition: Repetition,
    logprobs: Option<usize>,
    rng: Rng,
}

impl Sampler {
    /// As the options say, with a seed of its own.
    pub fn new(options: &Options, seed: u64) -> Self {
        let Options { sampling, repetition, logprobs, .. } = options;
        Sampler { sampling: *sampling, repetition: *repetition, logprobs: *logprobs, rng: Rng::new(seed, "sample") }
    }

    /// The next token by row `row` of logits `[B, V]`, after `before`; and how likely it was, where that is asked for.
    ///
    /// # Errors
    /// When a number of the sampling is out of range, or the logits have NaN.
    pub fn next(&mut self, logits: &Tensor, before: &[u32], row: usize) -> Result<(u32, Option<Likely>)> {
        let one = if logits.shape()[0] == 1 { logits.clone() } else { logits.rows(row, 1)? };
        let logits = self.penalised(one, before)?;
        let chosen = sample(&logits, &self.sampling, &[self.rng.uniform() as f32])?;
        let token = *chosen.ids()?.first().ok_or_else(|| Error::value("sample", "no token came"))?;
        let likely = self.logprobs.map(|top| likely(&logits.to_floats()?, token, top)).transpose()?;
        Ok((token, likely))
    }

    fn penalised(&self, logits: Tensor, before: &[u32]) -> Result<Tensor> {
        let Repetition { penalty, context } = self.repetition;
        if penalty == 1.0 || context == 0 {
            return Ok(logits);
        }
        if !(penalty > 0.0 && penalty.is_finite()) {
            let why = format!("repetition penalty is {penalty}, expected a number above 0");
            return Err(Error::value("sample", why));
        }
        let plain = logits.to_floats()?;
        let mut numbers = plain.clone();
        for &token in &before[before.len().saturating_sub(context)..] {
            if let (Some(x), Some(&was)) = (numbers.get_mut(token as usize), plain.get(token as usize)) {
                *x = if was < 0.0 { was * penalty } else { was / penalty };
            }
        }
        Tensor::from_slice(&numbers, logits.shape(), logits.device())
    }
}

fn likely(logits: &[f32], token: u32, top: usize) -> Result<Likely> {
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
    Ok(Likely {
        logprob: logprob(*chosen),
        top: order.into_iter().map(|id| (id, logprob(logits[id as usize]))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Device;

    fn row(logits: &[f32]) -> Tensor {
        Tensor::from_slice(logits, [1, logits.len()], &Device::cpu()).unwrap()
    }

    #[test]
    fn a_repeated_token_costs_once_however_often_it_was_there() {
        let repetition = Repetition { penalty: 2.0, context: 3 };
        let options = Options { repetition, ..Options::default() };
        let penalised = |before: &[u32]| {
            Sampler::new(&options, 0).penalised(row(&[4.0, -1.0, 3.0, 0.5]), before).unwrap().to_vec::<f32>().unwrap()
        };
        assert_eq!(penalised(&[3, 0, 0, 1]), [2.0, -2.0, 3.0, 0.5]);
        assert_eq!(penalised(&[]), [4.0, -1.0, 3.0, 0.5]);
        let (token, _) = Sampler::new(&options, 0).next(&row(&[4.0, -1.0, 3.0, 0.5]), &[0], 0).unwrap();
        assert_eq!(token, 2);
    }

    #[test]
    fn logprobs_are_those_of_all_tokens_and_the_likeliest_come_first() {
        let logits = [1.0f32, 4.0, 1.0, 2.0].map(f32::ln);
        let Likely { logprob, top } = likely(&logits, 3, 3).unwrap();
        assert!((logprob - 0.25f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 0]);
        assert!((top[0].1 - 0.5f32.ln()).abs() < 1e-6);
        assert!(likely(&logits, 0, 9).unwrap().top.len() == 4);
    }
}
