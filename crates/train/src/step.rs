//! One step's losses and gradients.

use crate::{Packed, Settings};
use alluvium_core::{Device, Error, Result, Tape, Tensor, tape};
use alluvium_lm::{Batch, Keep, LanguageModel};
use alluvium_ops::{CrossEntropy, Reduction, cross_entropy};
use std::collections::BTreeMap;

/// Logits that the loss computes at once: 4 MiB of them stay in a processor's cache.
const LOGITS: usize = 1 << 20;

/// What batches gave: the mean loss and its gradient to every parameter, by name.
pub(crate) struct Gradients {
    pub(crate) loss: f64,
    pub(crate) by_name: BTreeMap<String, Tensor>,
}

/// The mean loss over the batches and its gradients. The model's parameters are followed for the time of the call.
pub(crate) fn gradients(
    model: &mut dyn LanguageModel,
    batches: &[Packed],
    settings: &Settings,
    device: &Device,
) -> Result<Gradients> {
    let mut total = Gradients { loss: 0.0, by_name: BTreeMap::new() };
    let share = 1.0 / batches.len() as f32;
    for batch in batches {
        let tape = Tape::new();
        model.visit_mut("", &mut |_, parameter| *parameter = tape.watch(parameter));
        let loss = device.run(|| loss(model, batch, settings, device))?;
        total.loss += f64::from(loss.item()?) * f64::from(share);
        let seed = Tensor::full(loss.shape(), share, device)?;
        let mut gradients = device.run(|| tape.backward(&[(&loss, &seed)]))?;
        let mut found = Vec::new();
        model.visit("", &mut |name, parameter| found.push((name, gradients.take(parameter))));
        for (name, gradient) in found {
            let gradient = gradient.ok_or_else(|| Error::value("train", format!("no gradient reached {name}")))?;
            let sum = match total.by_name.remove(&name) {
                Some(sum) => tape::accumulate(sum, &gradient)?,
                None => gradient,
            };
            total.by_name.insert(name, sum);
        }
    }
    Ok(total)
}

/// The mean loss of one batch, as the tape sees it.
pub(crate) fn loss(model: &dyn LanguageModel, batch: &Packed, settings: &Settings, device: &Device) -> Result<Tensor> {
    let [ids, positions, offsets, targets] = batch.tensors(device)?;
    let keep = if settings.grad_checkpoint { Keep::Inputs } else { Keep::Activations };
    let batch = Batch { ids: &ids, positions: &positions, cu_seqlens: Some(&offsets) };
    let hidden = model.hidden(&batch, keep)?;
    let w = model.head();
    let x = hidden.reshape([targets.elements(), hidden.shape().last()])?;
    cross_entropy(CrossEntropy {
        x: &x,
        w,
        targets: &targets,
        ignore_index: None,
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
