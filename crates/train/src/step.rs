//! One training step: gradients, clipping, update.

use crate::{Objective, Optimizer};
use alluvium_core::{Device, Error, Result, Tape, Tensor, tape};
use alluvium_lm::{Parameters, visit_trainable, visit_trainable_mut};
use alluvium_ops::{clip_by_norm, global_norm, scale};
use std::collections::BTreeMap;

/// The settings of one step.
#[derive(Clone, Copy, Debug)]
pub struct StepOptions {
    /// The step's number, counted from 1.
    pub step: u64,
    /// The learning rate.
    pub learning_rate: f32,
    /// Upper bound of the gradient's global norm; 0.0 disables clipping.
    pub grad_clip: f32,
}

/// The measurements of a step. On a GPU they are computed when they are read.
#[derive(Debug)]
pub struct StepStats {
    /// The mean loss before the step, `[]`.
    pub loss: Tensor,
    /// The gradient's norm before clipping, `[]`.
    pub grad_norm: Tensor,
    /// The weight of the batches: for language models, their number of targets.
    pub weight: f64,
}

impl StepStats {
    /// The loss and the norm; waits for the device.
    ///
    /// # Errors
    /// When the device was lost.
    pub fn read(&self) -> Result<(f64, f32)> {
        Ok((f64::from(self.loss.item()?), self.grad_norm.item()?))
    }
}

/// The mean loss of some batches and its gradients.
#[derive(Debug)]
pub struct Gradients {
    /// The mean loss, `[]`.
    pub loss: Tensor,
    /// The gradient of each parameter, by the parameter's name, f32.
    pub by_name: BTreeMap<String, Tensor>,
    /// The weight of the batches.
    pub weight: f64,
}

/// Takes one optimizer step on the mean loss of `batches`.
///
/// On a device whose results are at hand (the CPU) nothing moves when the loss or the gradient's norm is not finite;
/// [`StepStats::read`] tells.
///
/// # Errors
/// When there is no batch with a target, a trainable parameter has no gradient, or memory runs out.
pub fn train_step<M: Parameters + Send + Sync + ?Sized, B: Sync>(
    model: &mut M,
    objective: &(impl Objective<M, B> + ?Sized),
    optimizer: &mut Optimizer,
    batches: &[B],
    options: &StepOptions,
) -> Result<StepStats> {
    let Gradients { loss, mut by_name, weight } = gradients(model, objective, batches)?;
    let grad_norm = global_norm(&by_name.values().collect::<Vec<&Tensor>>())?;
    let device = loss.device().clone();
    let stats = StepStats { loss, grad_norm, weight };
    if device.is_host() {
        let (loss, norm) = stats.read()?;
        if !loss.is_finite() || !norm.is_finite() {
            return Ok(stats);
        }
    }
    if options.grad_clip > 0.0 {
        for gradient in by_name.values_mut() {
            // moved out, so that the operation owns the memory and can reuse it
            let owned = std::mem::replace(gradient, stats.grad_norm.clone());
            *gradient = clip_by_norm(owned, &stats.grad_norm, options.grad_clip)?;
        }
    }
    device.run(|| optimizer.step(model, &mut by_name, options.learning_rate, options.step))?;
    Ok(stats)
}

/// The mean loss of `batches` and its gradient with respect to every trainable parameter. Each batch counts by its
/// weight.
///
/// # Errors
/// When there is no batch with a target, a trainable parameter has no gradient, or memory runs out.
pub fn gradients<M: Parameters + Send + Sync + ?Sized, B: Sync>(
    model: &mut M,
    objective: &(impl Objective<M, B> + ?Sized),
    batches: &[B],
) -> Result<Gradients> {
    let weight: f64 = batches.iter().map(|batch| objective.weight(batch)).sum();
    let (mut sum, mut by_name) = (None, BTreeMap::new());
    for batch in batches.iter().filter(|batch| objective.weight(batch) > 0.0) {
        let share = (objective.weight(batch) / weight) as f32;
        let tape = Tape::new();
        let mut device = None;
        visit_trainable_mut(model, &mut |_, parameter| {
            device.get_or_insert_with(|| parameter.device().clone());
            *parameter = tape.watch(parameter);
        });
        let device: Device = device.ok_or_else(|| Error::value("train", "the model has no trainable parameters"))?;
        let loss = device.run(|| objective.loss(model, batch))?;
        add(&mut sum, scale(&loss.detach(), share)?)?;
        let seed = Tensor::full(loss.shape(), share, &device)?;
        let mut gradients = device.run(|| tape.backward(&[(&loss, &seed)]))?;
        let mut found = Vec::new();
        visit_trainable(model, &mut |name, parameter| found.push((name, gradients.take(parameter))));
        for (name, gradient) in found {
            let gradient =
                gradient.ok_or_else(|| Error::value("train", format!("the loss does not depend on `{name}`")))?;
            let mut sum = by_name.remove(&name);
            add(&mut sum, gradient)?;
            by_name.extend(sum.map(|sum| (name, sum)));
        }
    }
    let loss = sum.ok_or_else(|| Error::value("train", "no batch has a target; expected at least one"))?;
    Ok(Gradients { loss, by_name, weight })
}

fn add(sum: &mut Option<Tensor>, part: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(sum) => tape::accumulate(sum, &part)?,
        None => part,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{IGNORE_INDEX, PackedBatch};
    use crate::{NextToken, Preset, Settings};
    use alluvium_lm::{LanguageModel, freeze, initialize};

    fn model() -> Box<dyn LanguageModel> {
        let mut settings = Settings::of(Preset::Tiny);
        (settings.architecture.hidden_size, settings.architecture.vocab_size) = (32, 64);
        initialize(&settings.architecture.config(64, 0).unwrap(), 0, &Device::cpu()).unwrap()
    }

    /// One sequence; the first `masked` positions have no target.
    fn sequence(first: u32, length: u32, masked: usize) -> PackedBatch {
        let inputs: Vec<u32> = (first..first + length).map(|i| i * 7 % 64).collect();
        let mut targets: Vec<u32> = (first..first + length).map(|i| i * 11 % 64).collect();
        targets[..masked].fill(IGNORE_INDEX);
        let mut batch = PackedBatch::default();
        batch.push(&inputs, &targets);
        batch
    }

    #[test]
    fn every_target_weighs_the_same_however_targets_are_spread_over_batches() {
        let (a, b) = (sequence(1, 40, 38), sequence(50, 24, 3));
        let mut both = a.clone();
        both.push(&b.inputs, &b.targets);
        let objective = NextToken::new(&Device::cpu());
        let mut model = model();
        let apart = gradients(model.as_mut(), &objective, &[a.clone(), b.clone()]).unwrap();
        let together = gradients(model.as_mut(), &objective, std::slice::from_ref(&both)).unwrap();
        assert_eq!((apart.weight, together.weight), (23.0, 23.0));
        let close = |a: &Tensor, b: &Tensor| {
            let (a, b) = (a.to_vec::<f32>().unwrap(), b.to_vec::<f32>().unwrap());
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let gap = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
            gap <= 1e-5 * norm(&mut b.iter().copied())
        };
        assert!(close(&apart.loss, &together.loss));
        for (name, gradient) in &together.by_name {
            assert!(close(&apart.by_name[name], gradient), "{name}");
        }
        // the plain mean of the two batches is another number
        let alone = |batch: &PackedBatch| objective.loss(model.as_ref(), batch).unwrap().item().unwrap();
        let plain = (alone(&a) + alone(&b)) / 2.0;
        assert!((plain - together.loss.item().unwrap()).abs() > 1e-3);
    }

    #[test]
    fn a_frozen_parameter_gets_no_gradient_and_the_others_keep_theirs() {
        let (objective, batch) = (NextToken::new(&Device::cpu()), [sequence(1, 20, 0)]);
        let mut model = model();
        let all = gradients(model.as_mut(), &objective, &batch).unwrap().by_name;
        freeze(model.as_mut(), &|name| !name.contains("mlp"));
        let some = gradients(model.as_mut(), &objective, &batch).unwrap().by_name;
        assert!(!some.is_empty() && some.len() < all.len() && some.keys().all(|name| name.contains("mlp")));
        for (name, gradient) in some {
            assert_eq!(gradient.to_vec::<f32>().unwrap(), all[&name].to_vec::<f32>().unwrap(), "{name}");
        }
    }

    #[test]
    fn a_batch_without_targets_changes_nothing_and_alone_is_an_error() {
        let objective = NextToken::new(&Device::cpu());
        let (full, empty) = (sequence(1, 20, 0), sequence(1, 20, 20));
        let mut model = model();
        let one = gradients(model.as_mut(), &objective, std::slice::from_ref(&full)).unwrap();
        let two = gradients(model.as_mut(), &objective, &[full, empty.clone()]).unwrap();
        assert_eq!(one.loss.item().unwrap(), two.loss.item().unwrap());
        let error = gradients(model.as_mut(), &objective, &[empty]).unwrap_err().to_string();
        assert!(error.contains("no batch has a target"), "{error}");
    }
}
