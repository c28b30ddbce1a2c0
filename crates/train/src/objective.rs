//! Objectives: what a training step minimizes.

use crate::data::{IGNORE_INDEX, PackedBatch};
use alluvium_core::{Backward, Device, Error, Result, Tape, Tensor, tape};
use alluvium_lm::{Checkpointing, LanguageModel, Parameters, Weight};
use alluvium_ops::{CrossEntropyArgs, Reduction, add, argmax, concat, cross_entropy, embedding, kl_div, scale, slice};

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
        let targets = &batch.targets;
        let batch = batch.to_device(&self.device)?;
        let hidden = model.forward(&batch.batch(), self.checkpointing)?;
        let x = hidden.reshape([batch.targets.elements(), hidden.shape().last()])?;
        let head = model.lm_head();
        let Some(w) = head.dense().ok().filter(|w| w.dtype() == x.dtype()) else {
            if z_loss > 0.0 {
                return Err(Error::value("cross_entropy", "z_loss needs a plain f32 output projection; set it to 0"));
            }
            return head_loss(head, &x, targets);
        };
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

/// Next-token cross-entropy with an output projection of any form: half precision, quantized, with an adapter.
///
/// Logits are computed for some tokens at a time. Where the projection is frozen, the gradient of the hidden states is
/// computed with them, on a tape of its own, and the backward pass only scales it; else a chunk is computed again.
fn head_loss(head: &Weight, x: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let (places, targets): (Vec<u32>, Vec<u32>) =
        (0..).zip(targets).filter(|(_, target)| **target != IGNORE_INDEX).map(|(at, &target)| (at, target)).unzip();
    if places.is_empty() {
        return Tensor::full([], 0.0, x.device());
    }
    let rows = embedding(x, &Tensor::from_slice(&places, [places.len()], x.device())?)?;
    let chunk = (LOGITS_AT_ONCE / head.shape()[0]).clamp(16, 1024);
    let is_frozen = !is_traced(head);
    let (mut total, mut gradients) = (None, Vec::new());
    for (index, targets) in targets.chunks(chunk).enumerate() {
        let range = index * chunk..index * chunk + targets.len();
        let share = targets.len() as f32 / places.len() as f32;
        let part = if is_frozen {
            let tape = Tape::new();
            let mut part = rows.detach().rows(range.start, range.len())?;
            if rows.is_traced() {
                part = tape.watch(&part);
            }
            let loss = scale(&one_hot_loss(&head.linear(&part)?, targets)?, share)?;
            if rows.is_traced() {
                let mut grads = loss.backward()?;
                gradients.extend(grads.take(&part));
            }
            loss.detach()
        } else {
            let (head, targets) = (head.clone(), targets.to_vec());
            let logits = move |x: &Tensor| one_hot_loss(&head.linear(x)?, &targets);
            scale(&tape::recompute(&slice(&rows, 0, range)?, logits)?, share)?
        };
        total = Some(match total {
            Some(total) => add(&total, &part)?,
            None => part,
        });
    }
    let total = total.unwrap_or(Tensor::full([], 0.0, x.device())?);
    if gradients.is_empty() {
        return Ok(total);
    }
    let gradient = concat(&gradients.iter().collect::<Vec<_>>(), 0)?;
    tape::record([&rows], total, || HeadGradient { rows: gradient })
}

fn is_traced(head: &Weight) -> bool {
    let mut traced = false;
    head.visit("", &mut |_, tensor| traced |= tensor.is_traced());
    traced
}

/// The gradient of the hidden states for a loss whose own is 1.
struct HeadGradient {
    rows: Tensor,
}

impl Backward<1> for HeadGradient {
    fn op(&self) -> &'static str {
        "head_loss"
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(scale(&self.rows, dy.item()?)?)])
    }
}

/// A logit to which the softmax gives probability 0.
const NEVER: f32 = -1e4;

/// The mean cross-entropy of logits: the divergence from a teacher that is certain of the target.
fn one_hot_loss(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let vocab_size = logits.shape().last();
    let mut teacher = vec![NEVER; targets.len() * vocab_size];
    for (row, &target) in teacher.chunks_exact_mut(vocab_size).zip(targets) {
        let why = || Error::value("cross_entropy", format!("a target is {target}, expected below V = {vocab_size}"));
        *row.get_mut(target as usize).ok_or_else(why)? = 0.0;
    }
    kl_div(logits, &Tensor::from_slice(&teacher, logits.shape(), logits.device())?)
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
