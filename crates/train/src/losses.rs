//! Losses between two reports. On a GPU they stay where they are until somebody wants to know.

use crate::step::Measures;
use alluvium_core::Result;

/// The losses since the last report.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    pending: Vec<(u64, Measures)>,
    pub(crate) sum: f64,
    pub(crate) steps: u64,
    /// The gradient's norm at the last step that was read.
    pub(crate) norm: f32,
}

/// A step whose loss or gradient is no number.
#[derive(Debug)]
pub(crate) struct Diverged {
    step: u64,
    loss: f64,
    norm: f32,
}

impl std::fmt::Display for Diverged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the loss is {} and the gradient's norm {} at step {}", self.loss, self.norm, self.step)
    }
}

impl Losses {
    /// Remembers what a step measured.
    pub(crate) fn push(&mut self, step: u64, measures: Measures) {
        self.pending.push((step, measures));
    }

    /// Reads what was not read yet, up to the first that is no number.
    ///
    /// # Errors
    /// When the device was lost.
    pub(crate) fn settle(&mut self) -> Result<Option<Diverged>> {
        for (step, measures) in self.pending.drain(..) {
            let (loss, norm) = measures.read()?;
            if !loss.is_finite() || !norm.is_finite() {
                return Ok(Some(Diverged { step, loss, norm }));
            }
            self.sum += loss;
            self.steps += 1;
            self.norm = norm;
        }
        Ok(None)
    }

    /// The mean; begins anew.
    pub(crate) fn take_mean(&mut self) -> f64 {
        let mean = self.sum / self.steps.max(1) as f64;
        *self = Losses { norm: self.norm, ..Losses::default() };
        mean
    }
}
