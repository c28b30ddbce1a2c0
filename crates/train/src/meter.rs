//! Mean losses between two reports. On a GPU they are read when a report needs them.

use crate::StepStats;
use alluvium_core::Result;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// A sum of losses and the weight that it is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct WeightedSum {
    pub(crate) sum: f64,
    pub(crate) weight: f64,
}

impl WeightedSum {
    pub(crate) fn add(&mut self, mean: f64, weight: f64) {
        self.sum += mean * weight;
        self.weight += weight;
    }

    /// The mean; NaN when there is none.
    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.weight
    }
}

/// The losses since the last report.
#[derive(Debug, Default)]
pub(crate) struct LossMeter {
    unread: Vec<(u64, StepStats)>,
    pub(crate) losses: WeightedSum,
    /// The gradient's norm at the last step that was read.
    pub(crate) grad_norm: f32,
}

/// A step whose loss or gradient is not finite.
#[derive(Debug)]
pub(crate) struct Diverged {
    pub(crate) step: u64,
    loss: f64,
    grad_norm: f32,
}

impl std::fmt::Display for Diverged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Diverged { step, loss, grad_norm } = self;
        write!(f, "the loss is {loss} and the gradient's norm {grad_norm} at step {step}")
    }
}

impl LossMeter {
    pub(crate) fn push(&mut self, step: u64, stats: StepStats) {
        self.unread.push((step, stats));
    }

    /// Reads all steps up to the first that is not finite.
    ///
    /// # Errors
    /// When the device was lost.
    pub(crate) fn sync(&mut self) -> Result<Option<Diverged>> {
        for (step, stats) in self.unread.drain(..) {
            let (loss, grad_norm) = stats.read()?;
            if !loss.is_finite() || !grad_norm.is_finite() {
                return Ok(Some(Diverged { step, loss, grad_norm }));
            }
            self.losses.add(loss, stats.weight);
            self.grad_norm = grad_norm;
        }
        Ok(None)
    }

    /// The mean loss since the last call.
    pub(crate) fn mean_and_reset(&mut self) -> f64 {
        std::mem::take(&mut self.losses).mean()
    }
}

/// Tokens per second between two reports.
#[derive(Debug)]
pub(crate) struct Throughput {
    started: Instant,
    tokens: usize,
}

impl Throughput {
    pub(crate) fn new() -> Self {
        Throughput { started: Instant::now(), tokens: 0 }
    }

    pub(crate) fn add(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    /// Leaves the time since `from` out.
    pub(crate) fn exclude(&mut self, from: Instant) {
        self.started += from.elapsed();
    }

    /// Tokens per second since the last call.
    pub(crate) fn rate_and_reset(&mut self) -> f64 {
        let done = std::mem::replace(self, Throughput::new());
        done.tokens as f64 / done.started.elapsed().as_secs_f64().max(1e-9)
    }
}
