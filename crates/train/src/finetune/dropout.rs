//! Dropout in training steps, and none in validation.

use crate::Objective;
use crate::data::PackedBatch;
use alluvium_core::{Result, Tensor};
use alluvium_lm::LanguageModel;
use alluvium_lm::adapter::DropoutSwitch;
use std::sync::atomic::{AtomicU64, Ordering};

/// An objective whose training losses each have a draw of dropout.
pub(super) struct WithDropout {
    pub(super) objective: Box<dyn Objective<dyn LanguageModel, PackedBatch>>,
    pub(super) switch: DropoutSwitch,
    /// The number of the next draw: of the batches of the run so far.
    pub(super) next: AtomicU64,
}

impl Objective<dyn LanguageModel, PackedBatch> for WithDropout {
    fn loss(&self, model: &(dyn LanguageModel + 'static), batch: &PackedBatch) -> Result<Tensor> {
        self.switch.draw(self.next.fetch_add(1, Ordering::Relaxed));
        self.objective.loss(model, batch)
    }

    fn weight(&self, batch: &PackedBatch) -> f64 {
        self.objective.weight(batch)
    }

    fn validation_loss(&self, model: &(dyn LanguageModel + 'static), batch: &PackedBatch) -> Result<Tensor> {
        self.switch.off();
        self.objective.validation_loss(model, batch)
    }
}
