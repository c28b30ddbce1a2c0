//! One step's losses and gradients.

use crate::drill::NO_ANSWER;
use crate::{Optimiser, Packed, Schedule, Settings};
use alluvium_core::{Device, Error, Result, Tape, Tensor, tape};
use alluvium_lm::{Batch, Keep, LanguageModel};
use alluvium_ops::{CrossEntropy, Reduction, clip_by_norm, cross_entropy, global_norm, scale};
use std::collections::BTreeMap;

/// Logits that the loss computes at once: 4 MiB of them stay in a processor's cache.
const LOGITS: usize = 1 << 20;

/// What a step measured; on a GPU it is computed when it is read.
#[derive(Debug)]
pub(crate) struct Measures {
    /// The mean loss before the step, `[]`.
    loss: Tensor,
    /// The gradient's norm before clipping, `[]`.
    norm: Tensor,
}

impl Measures {
    /// The loss and the norm.
    ///
    /// # Errors
    /// When the device was lost.
    pub(crate) fn read(&self) -> Result<(f64, f32)> {
        Ok((f64::from(self.loss.item()?), self.norm.item()?))
    }
}

/// Moves the parameters by one step, counted from 1. Where the loss or the gradient's norm is no number, and that can be
/// known without waiting, nothing moves.
pub(crate) fn descend(
    model: &mut dyn LanguageModel,
    optimiser: &mut Optimiser,
    batches: &[Packed],
    settings: &Settings,
    step: u64,
    device: &Device,
) -> Result<Measures> {
    let Gradients { loss, mut by_name } = gradients(model, batches, settings, device)?;
    let norm = global_norm(&by_name.values().collect::<Vec<&Tensor>>())?;
    let measures = Measures { loss, norm };
    if device.reads_at_once() {
        let (loss, norm) = measures.read()?;
        if !loss.is_finite() || !norm.is_finite() {
            return Ok(measures);
        }
    }
    if settings.grad_clip > 0.0 {
        for gradient in by_name.values_mut() {
            // taken out, so that nobody else holds it
            let whole = std::mem::replace(gradient, measures.norm.clone());
            *gradient = clip_by_norm(whole, &measures.norm, settings.grad_clip)?;
        }
    }
    let rate = Schedule { peak: settings.learning_rate, warmup: settings.warmup, steps: settings.iters }.rate(step);
    device.run(|| optimiser.step(model, &mut by_name, rate, step))?;
    Ok(measures)
}

/// What batches gave: the mean loss and its gradient to every parameter, by name.
pub(crate) struct Gradients {
    pub(crate) loss: Tensor,
    pub(crate) by_name: BTreeMap<String, Tensor>,
}

/// The mean loss over the batches and its gradients. The model's parameters are followed for the time of the call.
pub(crate) fn gradients(
    model: &mut dyn LanguageModel,
    batches: &[Packed],
    settings: &Settings,
    device: &Device,
) -> Result<Gradients> {
    let (mut sum, mut by_name) = (None, BTreeMap::new());
    let share = 1.0 / batches.len() as f32;
    for batch in batches {
        let tape = Tape::new();
        model.visit_mut("", &mut |_, parameter| *parameter = tape.watch(parameter));
        let loss = device.run(|| loss(model, batch, settings, device))?;
        let part = scale(&loss.detach(), share)?;
        sum = Some(match sum {
            Some(sum) => tape::accumulate(sum, &part)?,
            None => part,
        });
        let seed = Tensor::full(loss.shape(), share, device)?;
        let mut gradients = device.run(|| tape.backward(&[(&loss, &seed)]))?;
        let mut found = Vec::new();
        model.visit("", &mut |name, parameter| found.push((name, gradients.take(parameter))));
        for (name, gradient) in found {
            let gradient = gradient.ok_or_else(|| Error::value("train", format!("no gradient reached {name}")))?;
            let sum = match by_name.remove(&name) {
                Some(sum) => tape::accumulate(sum, &gradient)?,
                None => gradient,
            };
            by_name.insert(name, sum);
        }
    }
    let loss = sum.ok_or_else(|| Error::value("train", "there is no batch"))?;
    Ok(Gradients { loss, by_name })
}

/// The mean loss of one batch, as the tape sees it.
pub(crate) fn loss(model: &dyn LanguageModel, batch: &Packed, settings: &Settings, device: &Device) -> Result<Tensor> {
    let [ids, positions, offsets, targets] = batch.tensors(device)?;
    let keep = if settings.grad_checkpoint { Keep::Inputs } else { Keep::Activations };
    let batch = Batch { ids: &ids, positions: &positions, cu_seqlens: Some(&offsets) };
    let hidden = model.hidden(&batch, keep)?;
    let w = model.head().dense()?;
    let x = hidden.reshape([targets.elements(), hidden.shape().last()])?;
    cross_entropy(CrossEntropy {
        x: &x,
        w,
        targets: &targets,
        ignore_index: Some(NO_ANSWER),
        reduction: Reduction::Mean,
        z_loss: settings.z_loss,
        chunk: (LOGITS / w.shape()[0]).clamp(16, 1024),
    })
}

/// The mean loss over tokens the model does not learn from.
pub(crate) fn held_out_loss(
    model: &dyn LanguageModel,
    batches: &[Packed],
    settings: &Settings,
    device: &Device,
) -> Result<f64> {
    let (mut sum, mut tokens) = (0.0, 0);
    let settings = Settings { z_loss: 0.0, ..settings.clone() };
    for batch in batches {
        sum += f64::from(loss(model, batch, &settings, device)?.item()?) * batch.inputs.len() as f64;
        tokens += batch.inputs.len();
    }
    Ok(sum / tokens.max(1) as f64)
}
