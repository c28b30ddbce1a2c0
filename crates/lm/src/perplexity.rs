//! Log-likelihood and perplexity of token sequences.

use crate::model::{Batch, Checkpointing, LanguageModel};
use alluvium_core::{Error, Result, Tensor};
use rayon::prelude::*;

/// Rows of logits that exist at once: a large vocabulary takes a megabyte each.
const ROWS: usize = 64;

/// The logits of hidden states: `[.., D]` to `[.., V]`.
///
/// # Errors
/// As [`linear`](alluvium_ops::linear).
pub fn logits(model: &dyn LanguageModel, hidden: &Tensor) -> Result<Tensor> {
    model.logits(hidden)
}

/// The logarithm of the sum of the exponentials of the logits, for each row of `hidden [R, D]`.
///
/// # Errors
/// As [`linear`](alluvium_ops::linear).
pub fn logsumexp(model: &dyn LanguageModel, hidden: &Tensor) -> Result<Vec<f64>> {
    each_row(model, hidden, |_, row| log_sum_exp(row))
}

/// The negative log-likelihood of each token after the first, in nats, given the tokens before it.
///
/// # Errors
/// When there are fewer than two tokens, or an id is not in the vocabulary.
pub fn nll(model: &dyn LanguageModel, ids: &[u32]) -> Result<Vec<f64>> {
    if ids.len() < 2 {
        return Err(Error::value("perplexity", format!("{} tokens were given, expected 2 or more", ids.len())));
    }
    let vocab = model.lm_head().shape()[0];
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(Error::value("perplexity", format!("token {id} is not in the vocabulary of {vocab}")));
    }
    let inputs = ids.len() - 1;
    let device = model.device();
    let positions: Vec<u32> = (0..inputs as u32).collect();
    let batch = Batch {
        ids: &Tensor::from_slice(&ids[..inputs], [1, inputs], device)?,
        positions: &Tensor::from_slice(&positions, [1, inputs], device)?,
        cu_seqlens: None,
    };
    let hidden = model.forward(&batch, Checkpointing::Layers)?;
    let hidden = hidden.reshape([inputs, hidden.shape().last()])?;
    each_row(model, &hidden, |index, row| log_sum_exp(row) - f64::from(row[ids[index + 1] as usize]))
}

/// Accumulated negative log-likelihoods.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// The sum of the negative log-likelihoods, in nats.
    pub nll: f64,
    /// The sum of their squares.
    pub squares: f64,
    /// The number of tokens.
    pub tokens: usize,
}

impl Score {
    /// The mean negative log-likelihood per token, in nats.
    pub fn mean(&self) -> f64 {
        self.nll / self.tokens as f64
    }

    /// The standard error of the perplexity, were the tokens independent.
    pub fn standard_error(&self) -> f64 {
        let tokens = self.tokens as f64;
        let variance = (self.squares - tokens * self.mean().powi(2)) / (tokens - 1.0).max(1.0);
        self.perplexity() * (variance.max(0.0) / tokens).sqrt()
    }

    /// The exponential of the mean: among how many tokens the model hesitates.
    pub fn perplexity(&self) -> f64 {
        self.mean().exp()
    }
}

/// Scores a long text in windows of `length` tokens, each read from its own beginning: the first token of a window is
/// not counted. What is left after the last whole window is not counted either, unless it is all there is. `progress`
/// is given how many tokens are done.
///
/// # Source
/// `load_data` and `eval_ppl` of `mlx_lm.perplexity`.
///
/// # Errors
/// As [`nll`], when `length` is less than 2, and when what a token costs is no finite number.
pub fn score(model: &dyn LanguageModel, ids: &[u32], length: usize, progress: &mut dyn FnMut(usize)) -> Result<Score> {
    if length < 2 || ids.len() < 2 {
        let why = format!("{} tokens in windows of {length} were given, expected 2 or more of each", ids.len());
        return Err(Error::value("perplexity", why));
    }
    let mut score = Score::default();
    let whole = ids.len() / length * length;
    let counted = if whole > 0 { &ids[..whole] } else { ids };
    for window in counted.chunks(length) {
        let losses = nll(model, window)?;
        if let Some(loss) = losses.iter().find(|loss| !loss.is_finite()) {
            let why =
                "the model's weights or activations are not finite; the checkpoint may be broken or badly converted";
            return Err(Error::value("perplexity", format!("a token costs {loss} nats: {why}")));
        }
        score.nll += losses.iter().sum::<f64>();
        score.squares += losses.iter().map(|x| x * x).sum::<f64>();
        score.tokens += window.len() - 1;
        progress(score.tokens);
    }
    Ok(score)
}

fn each_row(model: &dyn LanguageModel, hidden: &Tensor, of: impl Fn(usize, &[f32]) -> f64 + Sync) -> Result<Vec<f64>> {
    let rows = hidden.shape().first().copied().unwrap_or(0);
    let mut results = Vec::with_capacity(rows);
    for first in (0..rows).step_by(ROWS) {
        let part = logits(model, &hidden.rows(first, ROWS.min(rows - first))?)?;
        let (width, values) = (part.shape().last(), part.to_floats()?);
        results.par_extend(values.par_chunks(width).enumerate().map(|(i, row)| of(first + i, row)));
    }
    Ok(results)
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + row.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}
