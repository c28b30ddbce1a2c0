//! Samples of a model in training: text that it generates after a prompt of the validation text.

use super::generate::write_stream;
use crate::output::dimmed;
use alluvium::lm::{GenerateOptions, Session};
use alluvium::ops::Sampling;
use alluvium::train::Trainer;
use std::io::Write;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// The longest time that a sample at a validation takes.
const PATIENCE: Duration = Duration::from_secs(3);

/// The most samples of a run that are kept for its report.
const KEPT: usize = 16;

/// A prompt and what the model wrote after it.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) step: u64,
    pub(super) prompt: String,
    pub(super) text: String,
}

/// How samples are drawn.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    pub(super) prompt: String,
    pub(super) seed: u64,
}

impl Sampler {
    fn options(&self, max_tokens: usize) -> GenerateOptions {
        let sampling = Sampling { temperature: 0.7, top_k: 0, top_p: 0.95, min_p: 0.0 };
        GenerateOptions { max_tokens, sampling, seed: self.seed, ..GenerateOptions::default() }
    }

    /// A short sample: at most `tokens` tokens, and at most those of a few seconds. `check` ends it, too.
    pub(super) fn glance(
        &self,
        trainer: &Trainer,
        tokens: usize,
        check: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> alluvium::Result<Option<Sample>> {
        let Some(tokenizer) = trainer.tokenizer().filter(|_| tokens > 0) else { return Ok(None) };
        let end = Instant::now() + PATIENCE;
        let mut goes_on = || if Instant::now() < end { check() } else { ControlFlow::Break(()) };
        let ids = tokenizer.encode(&self.prompt)?;
        let mut session = Session::new(trainer.model())?.without_snapshots();
        let mut text = String::new();
        let options = self.options(tokens);
        for token in session.stream_observed(Some(tokenizer), &ids, &options, &mut |_| goes_on())? {
            text += &token?.text;
            if goes_on().is_break() {
                break;
            }
        }
        Ok(Some(Sample { step: trainer.step(), prompt: self.prompt.clone(), text }))
    }

    /// A sample that is written while it is generated.
    pub(super) fn write(
        &self,
        trainer: &Trainer,
        tokens: usize,
        out: &mut impl Write,
    ) -> anyhow::Result<Option<Sample>> {
        let Some(tokenizer) = trainer.tokenizer().filter(|_| tokens > 0) else { return Ok(None) };
        writeln!(out, "\nSample after {:?}:\n", self.prompt)?;
        write!(out, "{}", dimmed(&self.prompt))?;
        out.flush()?;
        let ids = tokenizer.encode(&self.prompt)?;
        let mut session = Session::new(trainer.model())?.without_snapshots();
        let generation = write_stream(session.stream(Some(tokenizer), &ids, &self.options(tokens))?, out)?;
        writeln!(out)?;
        Ok(Some(Sample { step: trainer.step(), prompt: self.prompt.clone(), text: generation.text }))
    }
}

/// Keeps a sample. Where there are too many, the one between the nearest two others is dropped, so those that stay are
/// spread over the run.
pub(super) fn keep(samples: &mut Vec<Sample>, sample: Sample) {
    if samples.len() == KEPT {
        let gap = |&i: &usize| samples.get(i + 1).unwrap_or(&sample).step.saturating_sub(samples[i - 1].step);
        if let Some(crowded) = (1..KEPT).min_by_key(gap) {
            samples.remove(crowded);
        }
    }
    samples.push(sample);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_samples_are_spread_over_the_run() {
        let mut samples = Vec::new();
        for step in 1..=100 {
            keep(&mut samples, Sample { step, prompt: String::new(), text: String::new() });
            assert!(samples.len() <= KEPT);
        }
        let steps: Vec<u64> = samples.iter().map(|sample| sample.step).collect();
        assert!(steps[0] == 1 && steps.last() == Some(&100) && steps.is_sorted(), "{steps:?}");
        assert!(steps.iter().filter(|&&step| step <= 50).count() >= 3, "{steps:?}");
    }
}
