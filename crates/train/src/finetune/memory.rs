//! The memory of a training step of a model that there is, measured on short sequences and extended to long ones.

use crate::data::{PackedBatch, Sample, Samples};
use crate::estimate::{Trained, available};
use crate::{MemoryEstimate, NextToken, OptimizerKind, TrainDtype, gradients};
use alluvium_core::{Result, Tensor};
use alluvium_lm::{Checkpointing, LanguageModel, visit_trainable};

/// Tokens of the two batches that are measured.
const SHORT: usize = 64;
const LONG: usize = 192;

/// Measures the gradients of two short batches and extends them to `tokens` tokens. The model stays as it is.
///
/// # Errors
/// When memory runs out.
pub fn estimate_memory(
    model: &mut (dyn LanguageModel + 'static),
    checkpointing: Checkpointing,
    tokens: usize,
    (optimizer, dtype): (OptimizerKind, TrainDtype),
) -> Result<MemoryEstimate> {
    let device = model.device().clone();
    let objective = NextToken { checkpointing, ..NextToken::new(&device) };
    let mut peak = |tokens: usize| -> Result<usize> {
        let tokens = (0..tokens as u32 + 1).map(|id| id % 7).collect::<Vec<u32>>();
        let all = 0..tokens.len();
        let sample = Sample { tokens, answers: vec![all] };
        let batches: Vec<PackedBatch> = Samples { samples: [sample].into(), ..Samples::default() }.batches(1, 1);
        device.wait()?;
        let before = device.memory_in_use();
        device.reset_peak();
        drop(gradients(model, &objective, &batches)?);
        device.wait()?;
        detach(model);
        Ok(device.peak_memory().saturating_sub(before))
    };
    // once to fill pools and caches
    peak(SHORT)?;
    let (short, long) = (peak(SHORT)?, peak(LONG)?);
    let per_token = long.saturating_sub(short).div_ceil(LONG - SHORT);
    let (mut parameters, mut weights, mut elements) = (0, 0, 0);
    model.visit("", &mut |_, tensor| {
        parameters += tensor.elements();
        weights += bytes(tensor);
    });
    visit_trainable(&*model, &mut |_, tensor| elements += tensor.elements());
    let [masters, gradients, moments] = Trained { elements, optimizer, dtype }.state();
    Ok(MemoryEstimate {
        parameters,
        weights,
        masters,
        gradients,
        moments,
        fixed: short.saturating_sub(per_token * SHORT),
        per_token,
        tokens,
        available: available(&device),
        checkpointing,
    })
}

fn bytes(tensor: &Tensor) -> usize {
    tensor.elements() * tensor.dtype().size()
}

/// Traced parameters keep nothing alive but look like a part of a tape.
fn detach(model: &mut dyn LanguageModel) {
    model.visit_mut("", &mut |_, tensor| *tensor = tensor.detach());
}
