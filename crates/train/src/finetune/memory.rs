//! The memory of a training step, measured on short sequences and extended to long ones.

use crate::data::{PackedBatch, Sample, Samples};
use crate::{NextToken, gradients};
use alluvium_core::{Device, Result, Tensor};
use alluvium_lm::{Checkpointing, LanguageModel, visit_trainable};

/// An estimate of the memory of a step, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepMemory {
    /// The model with its adapters.
    pub weights: usize,
    /// Gradients and the moments of the optimizer.
    pub optimizer: usize,
    /// What a batch adds whatever its length.
    pub fixed: usize,
    /// What each token of a batch adds: activations, states, logits.
    pub per_token: usize,
    /// The tokens of the longest batch.
    pub tokens: usize,
    /// What the device has to give; `None` where it is not known.
    pub available: Option<usize>,
    /// What a layer keeps for the backward pass.
    pub checkpointing: Checkpointing,
}

impl StepMemory {
    /// The peak of a step with the longest batch.
    pub fn total(&self) -> usize {
        self.constant() + self.per_token.saturating_mul(self.tokens)
    }

    /// The most tokens of a batch that fit; `None` where the memory of the device is not known.
    pub fn tokens_that_fit(&self) -> Option<usize> {
        Some(self.available?.saturating_sub(self.constant()) / self.per_token.max(1))
    }

    /// Whether the longest batch fits.
    pub fn fits(&self) -> bool {
        self.tokens_that_fit().is_none_or(|tokens| tokens >= self.tokens)
    }

    fn constant(&self) -> usize {
        self.weights + self.optimizer + self.fixed
    }
}

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
    moments: usize,
) -> Result<StepMemory> {
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
    let (mut weights, mut trainable) = (0, 0);
    model.visit("", &mut |_, tensor| weights += bytes(tensor));
    visit_trainable(&*model, &mut |_, tensor| trainable += bytes(tensor));
    Ok(StepMemory {
        weights,
        optimizer: moments * trainable,
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

/// The memory that the device has left for this process and what the process holds already.
fn available(device: &Device) -> Option<usize> {
    if !device.is_host() {
        return None;
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024;
    let free = free + device.memory_in_use();
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Some(limit.map_or(free, |limit: usize| free.min(limit)))
}
