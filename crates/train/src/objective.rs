//! Objectives: what a training step minimizes.

use crate::data::{IGNORE_INDEX, PackedBatch};
use alluvium_core::{DType, Device, Error, Result, Tensor, tape};
use alluvium_lm::{Checkpointing, LanguageModel, Parameters, Weight};
use alluvium_ops::{
    CrossEntropyArgs, QuantizedCrossEntropyArgs, Reduction, add, argmax, cast, cross_entropy, embedding, kl_div,
    quantized_cross_entropy, scale, slice,
};

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

/// Logits that a loss computes at once on a CPU: 4 MiB of them stay in its cache.
const LOGITS_AT_ONCE: usize = 1 << 20;
/// The same with a quantized projection, which is dequantized for each chunk.
const PACKED_LOGITS_AT_ONCE: usize = 1 << 22;
/// The same on a GPU, which reads the projection and its gradient once a chunk: 256 MiB.
const LOGITS_AT_ONCE_ON_GPU: usize = 1 << 26;

/// Tokens whose logits a loss with this projection computes at once.
pub(crate) fn tokens_at_once(head: &Weight) -> usize {
    let words = head.shape()[0].max(1);
    let on_cpu = if head.quantized().is_some() { PACKED_LOGITS_AT_ONCE } else { LOGITS_AT_ONCE };
    match head.device().is_host() {
        true => (on_cpu / words).clamp(16, 1024),
        false => (LOGITS_AT_ONCE_ON_GPU / words).clamp(16, 1 << 14),
    }
}

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
        let head = Head { weight: model.lm_head(), z_loss, reduction: Reduction::Mean };
        head.loss(&x, targets, &batch.targets)
    }
}

/// The output projection of a loss.
pub(crate) struct Head<'a> {
    pub(crate) weight: &'a Weight,
    pub(crate) z_loss: f32,
    pub(crate) reduction: Reduction,
}

impl Head<'_> {
    /// The cross-entropy of hidden states `[N, D]`; `on_device` are the targets there.
    pub(crate) fn loss(&self, x: &Tensor, targets: &[u32], on_device: &Tensor) -> Result<Tensor> {
        let Head { weight, z_loss, reduction } = *self;
        let ignore_index = Some(IGNORE_INDEX);
        let chunk = tokens_at_once(weight);
        match (weight, weight.quantized().filter(|_| !is_traced(weight))) {
            (Weight::Dense(w), _) => {
                let targets = on_device;
                cross_entropy(CrossEntropyArgs { x, w, targets, ignore_index, reduction, z_loss, chunk })
            }
            (_, Some(q)) => {
                let targets = on_device;
                let args = QuantizedCrossEntropyArgs { x, q, targets, ignore_index, reduction, z_loss, chunk };
                quantized_cross_entropy(args)
            }
            _ if z_loss > 0.0 => {
                let why = "z_loss needs an output projection without an adapter or trained scales; set it to 0";
                Err(Error::value("cross_entropy", why))
            }
            _ => {
                let count = targets.iter().filter(|&&target| target != IGNORE_INDEX).count();
                let mean = recomputed_loss(weight, x, targets)?;
                if reduction == Reduction::Sum { scale(&mean, count as f32) } else { Ok(mean) }
            }
        }
    }
}

/// The mean cross-entropy with an output projection that is trained as such: with an adapter, or with trained scales.
///
/// Logits are computed for some tokens at a time, and again in the backward pass.
fn recomputed_loss(head: &Weight, x: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let (places, targets): (Vec<u32>, Vec<u32>) =
        (0..).zip(targets).filter(|(_, target)| **target != IGNORE_INDEX).map(|(at, &target)| (at, target)).unzip();
    if places.is_empty() {
        return Tensor::full([], 0.0, x.device());
    }
    let rows = embedding(x, &Tensor::from_slice(&places, [places.len()], x.device())?)?;
    let chunk = tokens_at_once(head);
    let mut total: Option<Tensor> = None;
    for (index, targets) in targets.chunks(chunk).enumerate() {
        let range = index * chunk..index * chunk + targets.len();
        let share = targets.len() as f32 / places.len() as f32;
        let (head, targets) = (head.clone(), targets.to_vec());
        let loss = move |x: &Tensor| one_hot_loss(&head.linear(&cast(x, DType::F32)?)?, &targets);
        let part = scale(&tape::recompute(&slice(&rows, 0, range)?, loss)?, share)?;
        total = Some(match total {
            Some(total) => add(&total, &part)?,
            None => part,
        });
    }
    total.map_or_else(|| Tensor::full([], 0.0, x.device()), Ok)
}

fn is_traced(head: &Weight) -> bool {
    let mut traced = false;
    head.visit("", &mut |_, tensor| traced |= tensor.is_traced());
    traced
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
    let likeliest = argmax(&model.logits(&rows)?)?.to_vec::<u32>()?;
    Ok(likeliest.iter().zip(&targets).filter(|(a, b)| a == b).count())
}
