//! Distillation: a student learns the probabilities that a teacher gives to each next token.
//!
//! [`dwq`] repairs a quantized model: it trains scales, biases and unquantized parameters. [`distill`] trains a smaller
//! plain student. [`sensitivities`] measures how much each matrix of a model would gain from more bits.

mod dwq;
mod run;
mod sensitivity;
mod targets;

pub use dwq::{DwqSettings, dwq};
pub use run::{DistillEvent, DistillObserver, DistillSettings, Distilled, distill};
pub use sensitivity::{SensitivitySettings, choose_bits, sensitivities};
pub use targets::{TargetFolder, TopLogits};

use crate::Objective;
use crate::data::PackedBatch;
use crate::objective::tokens_at_once;
use alluvium_core::{Device, Error, Result, Tensor, tape};
use alluvium_lm::{Checkpointing, LanguageModel, Weight};
use alluvium_ops::{add, kl_div, scale, slice};

/// The Kullback-Leibler divergence of a student from a teacher, in nats, averaged over all tokens of a batch.
///
/// Both rows of logits are divided by the temperature. Logits are computed for some tokens at a time, and again in the
/// backward pass.
///
/// # Source
/// Hinton, Vinyals and Dean 2015, arXiv:1503.02531; `dwq_quantize` of mlx-lm, which has the same mean and no factor of
/// the temperature either.
#[derive(Clone, Debug)]
pub struct Distillation {
    /// The divisor of the logits.
    pub temperature: f32,
    /// The activations that a layer of the student keeps for the backward pass.
    pub checkpointing: Checkpointing,
    /// The device of the student.
    pub device: Device,
}

/// The tokens of a batch and the teacher's logits for them.
#[derive(Clone, Debug)]
pub struct DistillBatch {
    /// The tokens; targets are not read.
    pub tokens: PackedBatch,
    /// The teacher's logits.
    pub teacher: TeacherLogits,
}

/// The logits of a teacher for the T tokens of a batch.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // there is one for a batch
pub enum TeacherLogits {
    /// All of them: the hidden states `[T, D]` and the output projection give them for some tokens at a time.
    All {
        /// The hidden states after the final norm.
        hidden: Tensor,
        /// The output projection.
        head: Weight,
    },
    /// The largest of each token: the student's probabilities of the same ids are compared with theirs.
    Largest(TopLogits),
}

impl TeacherLogits {
    /// Runs a teacher over a batch.
    ///
    /// # Errors
    /// When the batch does not fit the teacher, or memory runs out.
    pub fn of(teacher: &dyn LanguageModel, tokens: &PackedBatch) -> Result<Self> {
        let batch = tokens.to_device(teacher.device())?;
        let hidden = teacher.forward(&batch.batch(), Checkpointing::None)?;
        let hidden = hidden.reshape([tokens.tokens(), hidden.shape().last()])?.detach();
        Ok(TeacherLogits::All { hidden, head: teacher.lm_head().clone() })
    }

    /// Those of some tokens.
    fn rows(&self, first: usize, count: usize) -> Result<TeacherLogits> {
        match self {
            TeacherLogits::All { hidden, head } => {
                Ok(TeacherLogits::All { hidden: hidden.rows(first, count)?, head: head.clone() })
            }
            TeacherLogits::Largest(top) => Ok(TeacherLogits::Largest(top.rows(first, count))),
        }
    }

    /// The divergence of a student's logits `[N, V]`.
    fn divergence(&self, logits: &Tensor, temperature: f32) -> Result<Tensor> {
        let by = temperature.recip();
        match self {
            TeacherLogits::All { hidden, head } => {
                let teacher = head.linear(hidden)?;
                if teacher.shape() != logits.shape() {
                    let (theirs, ours) = (teacher.shape().last(), logits.shape().last());
                    let why = format!("the teacher has {theirs} tokens, the student {ours}: expected one vocabulary");
                    return Err(Error::value("distill", why));
                }
                kl_div(&scale(logits, by)?, &scale(&teacher, by)?)
            }
            TeacherLogits::Largest(top) => {
                let [hidden, teacher] = top.spread(logits.shape().last(), logits.device())?;
                kl_div(&scale(&add(logits, &hidden)?, by)?, &scale(&teacher, by)?)
            }
        }
    }
}

impl Objective<dyn LanguageModel, DistillBatch> for Distillation {
    fn loss(&self, student: &dyn LanguageModel, batch: &DistillBatch) -> Result<Tensor> {
        let tokens = batch.tokens.tokens();
        let on_device = batch.tokens.to_device(&self.device)?;
        let hidden = student.forward(&on_device.batch(), self.checkpointing)?;
        let x = hidden.reshape([tokens, hidden.shape().last()])?;
        let (head, temperature) = (student.lm_head(), self.temperature);
        let chunk = tokens_at_once(head);
        let mut total: Option<Tensor> = None;
        for first in (0..tokens).step_by(chunk) {
            let count = chunk.min(tokens - first);
            let (head, teacher) = (head.clone(), batch.teacher.rows(first, count)?);
            let loss = move |x: &Tensor| teacher.divergence(&head.linear(x)?, temperature);
            let part = tape::recompute(&slice(&x, 0, first..first + count)?, loss)?;
            let part = scale(&part, count as f32 / tokens as f32)?;
            total = Some(match total {
                Some(total) => add(&total, &part)?,
                None => part,
            });
        }
        total.ok_or_else(|| Error::value("distill", "the batch has no token"))
    }

    fn weight(&self, batch: &DistillBatch) -> f64 {
        batch.tokens.tokens() as f64
    }
}
