//! Objectives: what a training step minimizes.

use crate::data::{IGNORE_INDEX, PackedBatch};
use alluvium_core::{Device, Result, Tensor};
use alluvium_lm::{Checkpointing, LanguageModel};
use alluvium_ops::{CrossEntropyArgs, Reduction, argmax, cross_entropy, embedding};

/// A loss of a model `M` on a batch `B`.
///
/// Any `Fn(&M, &B) -> Result<Tensor>` is an objective whose batches weigh the same.
pub trait Objective<M: ?Sized, B>: Send + Sync {
    /// The mean loss of a batch, `[]`, as the tape records it.
    ///
    /// # Errors
    /// When the batch does not fit the model, or memory runs out.
    fn loss(&self, model: &M, batch: &B) -> Result<Tensor>;

    /// The count that [`Objective::loss`] averages over, for example the number of targets. Losses and gradients of several
    /// batches are averaged with these weights; a batch of weight 0 is left out.
    fn weight(&self, _batch: &B) -> f64 {
        1.0
    }

    /// The loss that validation reports: without terms that only regularize.
    ///
    /// # Errors
    /// As [`Objective::loss`].
    fn validation_loss(&self, model: &M, batch: &B) -> Result<Tensor> {
        self.loss(model, batch)
    }
}

impl<M: ?Sized, B, F: Fn(&M, &B) -> Result<Tensor> + Send + Sync> Objective<M, B> for F {
    fn loss(&self, model: &M, batch: &B) -> Result<Tensor> {
        self(model, batch)
    }
}

/// Logits that the loss computes at once: 4 MiB of them stay in a CPU's cache.
const LOGITS_AT_ONCE: usize = 1 << 20;

/// Next-token cross-entropy in nats, averaged over the positions that have a target.
#[derive(Clone, Debug)]
pub struct NextToken {
    /// Weight of the squared log-sum-exp of the logits, added to the training loss; 0.0 disables it.
    pub z_loss: f32,
    /// The activations that a layer keeps for the backward pass.
    pub checkpointing: Checkpointing,
    /// The device of the model.
    pub device: Device,
}

impl NextToken {
    /// Cross-entropy alone, on a device.
    pub fn new(device: &Device) -> Self {
        NextToken { z_loss: 0.0, checkpointing: Checkpointing::None, device: device.clone() }
    }

    fn cross_entropy(&self, model: &dyn LanguageModel, batch: &PackedBatch, z_loss: f32) -> Result<Tensor> {
        let batch = batch.to_device(&self.device)?;
        let hidden = model.forward(&batch.batch(), self.checkpointing)?;
        let w = model.lm_head().dense()?;
        let x = hidden.reshape([batch.targets.elements(), hidden.shape().last()])?;
        cross_entropy(CrossEntropyArgs {
            x: &x,
            w,
            targets: &batch.targets,
            ignore_index: Some(IGNORE_INDEX),
            reduction: Reduction::Mean,
            z_loss,
            chunk: (LOGITS_AT_ONCE / w.shape()[0]).clamp(16, 1024),
        })
    }
}

impl Objective<dyn LanguageModel, PackedBatch> for NextToken {
    fn loss(&self, model: &dyn LanguageModel, batch: &PackedBatch) -> Result<Tensor> {
        self.cross_entropy(model, batch, self.z_loss)
    }

    fn weight(&self, batch: &PackedBatch) -> f64 {
        batch.target_count() as f64
    }

    fn validation_loss(&self, model: &dyn LanguageModel, batch: &PackedBatch) -> Result<Tensor> {
        self.cross_entropy(model, batch, 0.0)
    }
}

/// The number of targets of a batch that are the model's most likely token.
///
/// # Errors
/// When the batch does not fit the model, or memory runs out.
pub fn correct_targets(model: &dyn LanguageModel, batch: &PackedBatch, device: &Device) -> Result<usize> {
    let (places, targets): (Vec<u32>, Vec<u32>) = (0..)
        .zip(&batch.targets)
        .filter(|(_, target)| **target != IGNORE_INDEX)
        .map(|(at, &target)| (at, target))
        .unzip();
    if places.is_empty() {
        return Ok(0);
    }
    let batch = batch.to_device(device)?;
    let hidden = model.forward(&batch.batch(), Checkpointing::None)?;
    let rows = hidden.reshape([batch.targets.elements(), hidden.shape().last()])?;
    let rows = embedding(&rows, &Tensor::from_slice(&places, [places.len()], device)?)?;
    let likeliest = argmax(&model.lm_head().linear(&rows)?)?.to_vec::<u32>()?;
    Ok(likeliest.iter().zip(&targets).filter(|(a, b)| a == b).count())
}
