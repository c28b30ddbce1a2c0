//! Samples of fine-tuning: conversations and texts as tokens, with the tokens that count in the loss.

use super::{DataPosition, IGNORE_INDEX, PackedBatch, TrainingData};
use alluvium_core::rng::Rng;
use alluvium_core::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// The tokens of one conversation or text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// All tokens.
    pub tokens: Vec<u32>,
    /// The tokens that count in the loss, in order and apart.
    pub answers: Vec<Range<usize>>,
}

impl Sample {
    /// A sample all of whose tokens count.
    pub fn whole(tokens: Vec<u32>) -> Self {
        let answers = std::iter::once(0..tokens.len()).collect();
        Sample { tokens, answers }
    }

    /// The number of tokens that count in the loss. The first token of a sample has none before it.
    pub fn target_count(&self) -> usize {
        self.answers.iter().map(|answer| answer.end.saturating_sub(answer.start.max(1))).sum()
    }

    /// The sample cut to `longest` tokens.
    fn cut(&mut self, longest: usize) {
        self.tokens.truncate(longest);
        let end = self.tokens.len();
        self.answers.iter_mut().for_each(|answer| answer.end = answer.end.min(end));
        self.answers.retain(|answer| answer.start < answer.end);
    }

    /// Appends the sample to a batch: a token is the target of the one before it.
    fn push(&self, batch: &mut PackedBatch) {
        let mut targets = vec![IGNORE_INDEX; self.tokens.len()];
        for place in self.answers.iter().cloned().flatten().filter(|&place| place > 0) {
            targets[place - 1] = self.tokens[place];
        }
        let inputs = self.tokens.len().saturating_sub(1);
        batch.push(&self.tokens[..inputs], &targets[..inputs]);
    }
}

/// What is done with a sample that is longer than the maximum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongSamples {
    /// Its end is cut off.
    #[default]
    Cut,
    /// It is left out.
    Skip,
}

/// Whether samples stand alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pairing {
    /// Each stands alone.
    #[default]
    Single,
    /// A chosen one and a rejected one belong together.
    Pairs,
}

impl Pairing {
    /// Samples that belong together.
    pub fn size(self) -> usize {
        if self == Pairing::Pairs { 2 } else { 1 }
    }
}

/// The order of the samples in an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SampleOrder {
    /// Random, another one in each epoch.
    #[default]
    Random,
    /// That of the file.
    File,
}

/// Samples that are fit for training, and the number of those that were changed or left out.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// The samples, each with a target. Of pairs, the chosen one comes before the rejected one.
    pub samples: Arc<[Sample]>,
    /// Whether two neighbors are a pair, which no batch separates.
    pub pairing: Pairing,
    /// Samples that were longer than the maximum.
    pub long: usize,
    /// Samples that were left out because none of their tokens counts in the loss.
    pub without_target: usize,
}

impl Samples {
    /// Cuts long samples or leaves them out, and leaves out those without a target.
    pub fn new(samples: Vec<Sample>, longest: usize, long_samples: LongSamples) -> Self {
        let (mut kept, mut long, mut without_target) = (Vec::new(), 0, 0);
        for mut sample in samples {
            if sample.tokens.len() > longest {
                long += 1;
                if long_samples == LongSamples::Skip {
                    continue;
                }
                sample.cut(longest);
            }
            match sample.target_count() {
                0 => without_target += 1,
                _ => kept.push(sample),
            }
        }
        Samples { samples: kept.into(), pairing: Pairing::Single, long, without_target }
    }

    /// As [`Samples::new`] for pairs of a chosen and a rejected sample: both are kept, or neither.
    pub fn of_pairs(pairs: Vec<[Sample; 2]>, longest: usize, long_samples: LongSamples) -> Self {
        let mut all = Samples { pairing: Pairing::Pairs, ..Samples::default() };
        let mut kept = Vec::new();
        for pair in pairs {
            let pair = Samples::new(pair.into(), longest, long_samples);
            all.long += pair.long;
            all.without_target += pair.without_target;
            if pair.samples.len() == 2 {
                kept.extend(pair.samples.iter().cloned());
            }
        }
        Samples { samples: kept.into(), ..all }
    }

    /// The number of tokens of all samples.
    pub fn tokens(&self) -> usize {
        self.samples.iter().map(|sample| sample.tokens.len()).sum()
    }

    /// The number of targets of all samples.
    pub fn target_count(&self) -> usize {
        self.samples.iter().map(Sample::target_count).sum()
    }

    /// The number of tokens of the longest sample.
    pub fn longest(&self) -> usize {
        self.samples.iter().map(|sample| sample.tokens.len()).max().unwrap_or(0)
    }

    /// The number of samples, or of pairs.
    pub fn len(&self) -> usize {
        self.samples.len() / self.pairing.size()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// The samples or pairs in order, `batch_size` in a batch; at most `count` batches.
    pub fn batches(&self, batch_size: usize, count: usize) -> Vec<PackedBatch> {
        let batch = |samples: &[Sample]| {
            let mut batch = PackedBatch::default();
            samples.iter().for_each(|sample| sample.push(&mut batch));
            batch
        };
        self.samples.chunks(batch_size.max(1) * self.pairing.size()).take(count).map(batch).collect()
    }
}

/// [`Samples`] as a source of training batches: `batch_size` samples side by side, without padding. The last batch
/// of an
/// epoch may have fewer.
///
/// A position's `index` counts batches.
#[derive(Debug)]
pub struct SampleData {
    samples: Arc<[Sample]>,
    pairing: Pairing,
    batch_size: usize,
    seed: u64,
    order: SampleOrder,
    position: DataPosition,
    /// The samples or pairs of the position's epoch, in order.
    indices: Vec<usize>,
}

impl SampleData {
    /// Batches of `batch_size` samples, in an order that depends on `seed`.
    ///
    /// # Errors
    /// When there is no sample, or `batch_size` is 0.
    pub fn new(samples: &Samples, batch_size: usize, order: SampleOrder, seed: u64) -> Result<Self> {
        if samples.samples.is_empty() || batch_size == 0 {
            let why = format!("{} samples in batches of {batch_size} came, expected at least 1", samples.samples.len());
            return Err(Error::value("finetune", why));
        }
        let (pairing, position) = (samples.pairing, DataPosition::default());
        let samples = samples.samples.clone();
        let mut data = SampleData { samples, pairing, batch_size, seed, order, position, indices: Vec::new() };
        data.indices = data.epoch(0);
        Ok(data)
    }

    /// The order of an epoch: it depends on the seed and the epoch alone.
    fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..self.samples.len() / self.pairing.size()).collect();
        if self.order == SampleOrder::Random {
            Rng::new(self.seed, &format!("samples of epoch {epoch}")).shuffle(&mut indices);
        }
        indices
    }

    fn batches(&self) -> u64 {
        (self.samples.len() / self.pairing.size()).div_ceil(self.batch_size) as u64
    }
}

impl TrainingData for SampleData {
    fn next_batch(&mut self) -> Result<PackedBatch> {
        let first = self.position.index as usize * self.batch_size;
        let end = (first + self.batch_size).min(self.indices.len());
        let mut batch = PackedBatch::default();
        let each = self.pairing.size();
        for index in &self.indices[first..end] {
            self.samples[index * each..(index + 1) * each].iter().for_each(|sample| sample.push(&mut batch));
        }
        self.position.index += 1;
        if self.position.index == self.batches() {
            self.position = DataPosition { epoch: self.position.epoch + 1, index: 0 };
            self.indices = self.epoch(self.position.epoch);
        }
        Ok(batch)
    }

    fn position(&self) -> DataPosition {
        self.position
    }

    fn seek(&mut self, position: DataPosition) -> Result<()> {
        if position.index >= self.batches() {
            let why = format!("batch {} of an epoch came, expected below {}", position.index, self.batches());
            return Err(Error::value("samples", why));
        }
        self.indices = self.epoch(position.epoch);
        self.position = position;
        Ok(())
    }

    fn fingerprint(&self) -> u64 {
        let step = |hash: u64, x: u64| (hash ^ x).wrapping_mul(0x0100_0000_01b3);
        self.samples.iter().fold(0xcbf2_9ce4_8422_2325, |hash, sample| {
            let hash = step(hash, sample.tokens.len() as u64);
            let hash = sample.tokens.iter().fold(hash, |hash, &token| step(hash, u64::from(token)));
            sample.answers.iter().fold(hash, |hash, answer| step(step(hash, answer.start as u64), answer.end as u64))
        })
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // samples with one answer
mod tests {
    use super::*;

    fn sample(tokens: Range<u32>, answers: &[Range<usize>]) -> Sample {
        Sample { tokens: tokens.collect(), answers: answers.to_vec() }
    }

    #[test]
    fn only_answers_are_targets_and_samples_stay_apart() {
        let samples = vec![sample(0..6, &[2..3, 4..6]), sample(10..13, std::slice::from_ref(&(0..3)))];
        let samples = Samples::new(samples, 100, LongSamples::Cut);
        assert_eq!((samples.tokens(), samples.target_count()), (9, 5));
        let none = IGNORE_INDEX;
        let batch = &samples.batches(2, 9)[0];
        assert_eq!(batch.inputs, [0, 1, 2, 3, 4, 10, 11]);
        assert_eq!(batch.targets, [none, 2, none, 4, 5, 11, 12]);
        assert_eq!((&batch.positions[..], &batch.offsets[..]), (&[0, 1, 2, 3, 4, 0, 1][..], &[0, 5, 7][..]));
    }

    #[test]
    fn long_samples_are_counted_and_cut_or_left_out() {
        let all = || vec![sample(0..8, &[5..8, 2..3]), sample(0..9, &[8..9]), sample(0..3, &[0..0])];
        let cut = Samples::new(all(), 6, LongSamples::Cut);
        assert_eq!((cut.long, cut.without_target), (2, 2));
        assert_eq!(cut.samples[..], [sample(0..6, &[5..6, 2..3])]);
        let skipped = Samples::new(all(), 8, LongSamples::Skip);
        assert_eq!((skipped.long, skipped.samples.len(), skipped.without_target), (1, 1, 1));
        assert!(SampleData::new(&Samples::new(vec![], 4, LongSamples::Cut), 2, SampleOrder::Random, 0).is_err());
    }

    #[test]
    fn an_epoch_has_each_sample_once_and_a_position_is_all_that_is_needed_to_resume() {
        let all: Vec<Sample> = (0..7).map(|i| sample(10 * i..10 * i + 3, &[1..3, 0..0])).collect();
        let samples = Samples::new(all, 9, LongSamples::Cut);
        let mut data = SampleData::new(&samples, 3, SampleOrder::Random, 4).unwrap();
        let batches: Vec<PackedBatch> = (0..12).map(|_| data.next_batch().unwrap()).collect();
        for epoch in batches.chunks(3) {
            let mut firsts: Vec<u32> = epoch.iter().flat_map(|b| b.inputs.iter().step_by(2).copied()).collect();
            firsts.sort_unstable();
            assert_eq!(firsts, [0, 10, 20, 30, 40, 50, 60]);
        }
        assert_ne!(batches[..3], batches[3..6]);
        for (stop, batch) in batches.iter().enumerate().take(12) {
            let mut first = SampleData::new(&samples, 3, SampleOrder::Random, 4).unwrap();
            (0..stop).for_each(|_| drop(first.next_batch().unwrap()));
            let mut second = SampleData::new(&samples, 3, SampleOrder::Random, 4).unwrap();
            second.seek(first.position()).unwrap();
            assert_eq!(second.next_batch().unwrap(), *batch);
        }
        let mut file = SampleData::new(&samples, 3, SampleOrder::File, 4).unwrap();
        assert_eq!(file.next_batch().unwrap().inputs, [0, 1, 10, 11, 20, 21]);
    }
}
