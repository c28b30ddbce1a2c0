//! Preferences: objectives on pairs of a chosen and a rejected answer.

use crate::data::{IGNORE_INDEX, PackedBatch};
use crate::objective::Head;
use crate::{NextToken, Objective};
use alluvium_core::{Error, Result, Tensor};
use alluvium_lm::{Checkpointing, LanguageModel};
use alluvium_ops::{Reduction, add, exp, log, relu, scale, slice, softplus, sub};
use std::collections::HashMap;
use std::ops::Range;

/// What fine-tuning minimizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LossKind {
    /// Cross-entropy of the next token.
    #[default]
    Sft,
    /// Direct preference optimization, on pairs.
    Dpo,
    /// Odds ratio preference optimization, on pairs.
    Orpo,
}

impl std::str::FromStr for LossKind {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "sft" => Ok(LossKind::Sft),
            "dpo" => Ok(LossKind::Dpo),
            "orpo" => Ok(LossKind::Orpo),
            _ => Err(format!("`{name}` is not a loss; expected sft, dpo or orpo")),
        }
    }
}

/// The loss of pairs of answers, averaged over the pairs. In a batch each chosen answer is followed by the rejected one.
///
/// With `p` the probability of an answer, `r` that of the reference, and `m` the mean log-probability of its tokens:
/// - DPO: `−log σ(β · (log p(chosen)/r(chosen) − log p(rejected)/r(rejected)))`
/// - ORPO: `−m(chosen) − β · log σ(odds(chosen) − odds(rejected))` with `odds = m − log(max(1 − e^m, 1e-6))`
///
/// # Source
/// Rafailov et al. 2023, arXiv:2305.18290; Hong, Lee and Thorne 2024, arXiv:2403.07691.
#[derive(Clone, Debug)]
pub struct Preference {
    /// The forward pass; its `z_loss` is not used.
    pub model: NextToken,
    /// The temperature of DPO, or the weight of ORPO's odds ratio.
    pub beta: f32,
    /// The log-probabilities of a reference model; ORPO has none.
    pub reference: Option<References>,
}

/// The least probability of everything else in ORPO's odds: the rounding of log-probabilities in f32, which are means of
/// differences of logits.
const LEAST_REST: f32 = 1e-6;

/// Log-probabilities of answers under a reference model, by a hash of their tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct References(HashMap<u64, f32>);

impl References {
    /// Those of the sequences of batches.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn of(model: &dyn LanguageModel, batches: &[PackedBatch]) -> Result<Self> {
        let forward = NextToken { checkpointing: Checkpointing::None, ..NextToken::new(model.device()) };
        let mut all = HashMap::new();
        for batch in batches {
            let losses = answer_losses(&forward, model, batch)?;
            for (rows, loss) in sequences(batch).zip(losses) {
                all.insert(hash(batch, &rows), -loss.item()?);
            }
        }
        Ok(References(all))
    }

    /// The hashes and the values, sorted.
    pub(crate) fn entries(&self) -> Vec<(u64, f32)> {
        let mut entries: Vec<(u64, f32)> = self.0.iter().map(|(&hash, &value)| (hash, value)).collect();
        entries.sort_unstable_by_key(|entry| entry.0);
        entries
    }

    /// Takes what [`References::entries`] gave.
    pub(crate) fn from_entries(entries: impl Iterator<Item = (u64, f32)>) -> Self {
        References(entries.collect())
    }

    /// Whether there is a value for every sequence.
    pub(crate) fn cover(&self, batches: &[PackedBatch]) -> bool {
        batches.iter().all(|batch| sequences(batch).all(|rows| self.0.contains_key(&hash(batch, &rows))))
    }

    fn get(&self, batch: &PackedBatch, rows: &Range<usize>) -> Result<f32> {
        let found = self.0.get(&hash(batch, rows)).copied();
        found.ok_or_else(|| Error::value("dpo", "an answer has no log-probability of the reference model"))
    }
}

fn sequences(batch: &PackedBatch) -> impl Iterator<Item = Range<usize>> + '_ {
    batch.offsets.windows(2).map(|ends| ends[0] as usize..ends[1] as usize)
}

fn hash(batch: &PackedBatch, rows: &Range<usize>) -> u64 {
    let step = |hash: u64, x: &u32| (hash ^ u64::from(*x)).wrapping_mul(0x0100_0000_01b3);
    batch.inputs[rows.clone()].iter().chain(&batch.targets[rows.clone()]).fold(0xcbf2_9ce4_8422_2325, step)
}

/// The negative log-likelihood of the targets of each sequence, `[]` each.
fn answer_losses(forward: &NextToken, model: &dyn LanguageModel, batch: &PackedBatch) -> Result<Vec<Tensor>> {
    let on_device = batch.to_device(&forward.device)?;
    let hidden = model.forward(&on_device.batch(), forward.checkpointing)?;
    let x = hidden.reshape([batch.tokens(), hidden.shape().last()])?;
    let head = Head { weight: model.lm_head(), z_loss: 0.0, reduction: Reduction::Sum };
    let loss = |rows: Range<usize>| {
        let targets = &batch.targets[rows.clone()];
        let on_device = Tensor::from_slice(targets, [targets.len()], &forward.device)?;
        head.loss(&slice(&x, 0, rows)?, targets, &on_device)
    };
    sequences(batch).map(loss).collect()
}

impl Preference {
    fn pair(&self, batch: &PackedBatch, rows: [Range<usize>; 2], [chosen, rejected]: [&Tensor; 2]) -> Result<Tensor> {
        let constant = |x: f32| Tensor::full([], x, chosen.device());
        if let Some(reference) = &self.reference {
            let margin = reference.get(batch, &rows[0])? - reference.get(batch, &rows[1])?;
            // −β · (log-likelihood ratio − that of the reference)
            let minus = scale(&add(&sub(chosen, rejected)?, &constant(margin)?)?, self.beta)?;
            return softplus(&minus);
        }
        let count = |rows: &Range<usize>| {
            batch.targets[rows.clone()].iter().filter(|&&target| target != IGNORE_INDEX).count().max(1) as f32
        };
        let [m_chosen, m_rejected] =
            [(chosen, &rows[0]), (rejected, &rows[1])].map(|(loss, rows)| scale(loss, -count(rows).recip()));
        let (m_chosen, m_rejected) = (m_chosen?, m_rejected?);
        // of an answer that is certain the rest rounds to 0
        let rest = |m: &Tensor| {
            let rest = sub(&constant(1.0 - LEAST_REST)?, &exp(m)?)?;
            add(&relu(&rest)?, &constant(LEAST_REST)?)
        };
        let log_odds = |m: &Tensor| sub(m, &log(&rest(m)?)?);
        let minus = sub(&log_odds(&m_rejected)?, &log_odds(&m_chosen)?)?;
        sub(&scale(&softplus(&minus)?, self.beta)?, &m_chosen)
    }
}

impl Objective<dyn LanguageModel, PackedBatch> for Preference {
    fn loss(&self, model: &dyn LanguageModel, batch: &PackedBatch) -> Result<Tensor> {
        let losses = answer_losses(&self.model, model, batch)?;
        let rows: Vec<Range<usize>> = sequences(batch).collect();
        if losses.is_empty() || !losses.len().is_multiple_of(2) {
            return Err(Error::value("preference", format!("{} answers came, expected pairs", losses.len())));
        }
        let share = 2.0 / losses.len() as f32;
        let mut total: Option<Tensor> = None;
        for (losses, rows) in losses.chunks_exact(2).zip(rows.chunks_exact(2)) {
            let pair = self.pair(batch, [rows[0].clone(), rows[1].clone()], [&losses[0], &losses[1]])?;
            let part = scale(&pair, share)?;
            total = Some(match total {
                Some(total) => add(&total, &part)?,
                None => part,
            });
        }
        total.ok_or_else(|| Error::value("preference", "the batch has no pair"))
    }

    fn weight(&self, batch: &PackedBatch) -> f64 {
        batch.offsets.len().saturating_sub(1) as f64 / 2.0
    }
}
