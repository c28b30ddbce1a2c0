//! Synthetic memory tasks: sequences that a program generates.

use super::{DataPosition, IGNORE_INDEX, PackedBatch, TrainingData};
use alluvium_core::rng::Rng;
use alluvium_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// A synthetic memory task. A sequence lists pairs of a key and a value, then queries some keys; the target of a query
/// is the key's value.
///
/// Keys are drawn from the lower half of the vocabulary without 0, values from the upper half, both without repetition
/// in a sequence. All other tokens are 0. A query's distance from the pairs follows a power law, so most queries come
/// early.
///
/// Source: Arora et al. 2023, arXiv:2312.04927, where the other tokens are random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Task {
    /// 8 pairs, each key queried once: multi-query associative recall.
    Recall,
    /// 4 keys, each written four times in random order; the target is the value written last.
    Overwrite,
}

/// Exponent of the power law of query distances.
const POWER: f64 = 0.01;

impl Task {
    /// The name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Task::Recall => "recall",
            Task::Overwrite => "overwrite",
        }
    }

    /// The number of keys in a sequence.
    pub fn keys(self) -> usize {
        match self {
            Task::Recall => 8,
            Task::Overwrite => 4,
        }
    }

    /// The number of times that each key is written.
    pub fn writes(self) -> usize {
        match self {
            Task::Recall => 1,
            Task::Overwrite => 4,
        }
    }

    /// Generates `sequences` sequences of `length` tokens. `seed` and `name` determine all of them.
    ///
    /// # Errors
    /// [`Kind::Value`](alluvium_core::Kind::Value) when `length` or `vocab_size` is too small for the task.
    pub fn batch(self, sequences: usize, sizes: SequenceSize, seed: u64, name: &str) -> Result<PackedBatch> {
        let SequenceSize { length, vocab_size } = sizes;
        let (keys, pairs) = (self.keys(), self.keys() * self.writes());
        if length < 2 * (pairs + keys) {
            let why = format!("sequences of {length} tokens are too short, expected at least {}", 2 * (pairs + keys));
            return Err(Error::value(self.name(), why));
        }
        if vocab_size / 2 < pairs.max(keys + 1) || u32::try_from(vocab_size).is_err() {
            let least = 2 * pairs.max(keys + 1);
            let why = format!("a vocabulary of {vocab_size} came, expected {least} to {}", u32::MAX);
            return Err(Error::value(self.name(), why));
        }
        let mut rng = Rng::new(seed, &format!("{} {name}", self.name()));
        let mut batch = PackedBatch::default();
        for _ in 0..sequences {
            let (inputs, targets) = self.sequence(sizes, &mut rng);
            batch.push(&inputs, &targets);
        }
        Ok(batch)
    }

    /// One sequence: inputs and targets.
    fn sequence(self, SequenceSize { length, vocab_size }: SequenceSize, rng: &mut Rng) -> (Vec<u32>, Vec<u32>) {
        let pairs = self.keys() * self.writes();
        let half = vocab_size as u32 / 2;
        let keys = distinct(1..half, self.keys(), rng);
        let values = distinct(half..vocab_size as u32, pairs, rng);
        let mut order: Vec<usize> = (0..pairs).map(|i| i % keys.len()).collect();
        rng.shuffle(&mut order);
        let (mut inputs, mut targets) = (vec![0; length], vec![IGNORE_INDEX; length]);
        let mut latest = vec![0; keys.len()];
        for (i, (&key, &value)) in order.iter().zip(&values).enumerate() {
            (inputs[2 * i], inputs[2 * i + 1]) = (keys[key], value);
            latest[key] = value;
        }
        let mut queries: Vec<usize> = (0..keys.len()).collect();
        rng.shuffle(&mut queries);
        for (key, slot) in queries.into_iter().zip(query_slots(length / 2 - pairs, keys.len(), rng)) {
            let at = 2 * (pairs + slot);
            (inputs[at], targets[at]) = (keys[key], latest[key]);
        }
        (inputs, targets)
    }
}

/// The size of a task's sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceSize {
    /// Tokens in a sequence.
    pub length: usize,
    /// Distinct token ids.
    pub vocab_size: usize,
}

/// `count` distinct ids from a range, in random order.
fn distinct(ids: std::ops::Range<u32>, count: usize, rng: &mut Rng) -> Vec<u32> {
    let mut ids: Vec<u32> = ids.collect();
    rng.shuffle(&mut ids);
    ids.truncate(count);
    ids
}

/// `count` of `slots` slots, drawn without replacement; slot `i` has the weight `(i + 1)^(POWER − 1)`.
fn query_slots(slots: usize, count: usize, rng: &mut Rng) -> Vec<usize> {
    // the order of exponential clocks whose rates are the weights is a weighted draw without replacement
    let clock = |i: usize, rng: &mut Rng| -(1.0 - rng.uniform()).ln() * ((i + 1) as f64).powf(1.0 - POWER);
    let mut clocks: Vec<(f64, usize)> = (0..slots).map(|i| (clock(i, rng), i)).collect();
    clocks.sort_by(|a, b| a.0.total_cmp(&b.0));
    clocks.into_iter().take(count).map(|(_, i)| i).collect()
}

/// A [`Task`] as a source of training batches: every sequence is new.
///
/// A position's `index` counts batches; its `epoch` is always 0.
#[derive(Clone, Debug)]
pub struct TaskData {
    /// The task.
    pub task: Task,
    /// Sequences in a batch.
    pub batch_size: usize,
    /// The size of a sequence.
    pub sizes: SequenceSize,
    /// Seed of all sequences.
    pub seed: u64,
    /// Batches that were made.
    pub batches: u64,
}

impl TaskData {
    /// A batch that training never sees, for validation.
    ///
    /// # Errors
    /// As [`Task::batch`].
    pub fn validation_batch(&self, index: usize) -> Result<PackedBatch> {
        self.task.batch(self.batch_size, self.sizes, self.seed, &format!("held out {index}"))
    }
}

impl TrainingData for TaskData {
    fn next_batch(&mut self) -> Result<PackedBatch> {
        self.batches += 1;
        let name = format!("step {} 0", self.batches);
        self.task.batch(self.batch_size, self.sizes, self.seed, &name)
    }

    fn position(&self) -> DataPosition {
        DataPosition { epoch: 0, index: self.batches }
    }

    fn seek(&mut self, position: DataPosition) -> Result<()> {
        self.batches = position.index;
        Ok(())
    }

    fn fingerprint(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(task: Task) -> SequenceSize {
        match task {
            Task::Recall => SequenceSize { length: 64, vocab_size: 128 },
            Task::Overwrite => SequenceSize { length: 40, vocab_size: 64 },
        }
    }

    #[test]
    fn every_key_is_queried_once_and_the_target_is_the_value_written_last() {
        for task in [Task::Recall, Task::Overwrite] {
            let SequenceSize { length, vocab_size } = sizes(task);
            let pairs = task.keys() * task.writes();
            let batch = task.batch(50, sizes(task), 7, "batch 1").unwrap();
            assert_eq!(batch.offsets, (0..=50).map(|i| i * length as u32).collect::<Vec<_>>());
            let rows =
                batch.inputs.chunks(length).zip(batch.targets.chunks(length)).zip(batch.positions.chunks(length));
            for ((inputs, targets), positions) in rows {
                assert_eq!(positions, (0..length as u32).collect::<Vec<_>>());
                let written = inputs[..2 * pairs].chunks(2).map(|p| (p[0], p[1])).collect::<Vec<_>>();
                for &(key, value) in &written {
                    assert!((1..vocab_size as u32 / 2).contains(&key) && (vocab_size as u32 / 2..).contains(&value));
                    assert_eq!(written.iter().filter(|(k, _)| *k == key).count(), task.writes());
                    assert_eq!(written.iter().filter(|(_, v)| *v == value).count(), 1);
                }
                assert!(targets[..2 * pairs].iter().all(|&t| t == IGNORE_INDEX));
                let mut queried = Vec::new();
                for at in (2 * pairs..length).filter(|&at| targets[at] != IGNORE_INDEX) {
                    let last = written.iter().rev().find(|(key, _)| *key == inputs[at]).unwrap();
                    assert_eq!(targets[at], last.1);
                    queried.push(inputs[at]);
                }
                assert!((2 * pairs..length).all(|at| (inputs[at] == 0) == (targets[at] == IGNORE_INDEX)));
                queried.sort_unstable();
                queried.dedup();
                assert_eq!(queried.len(), task.keys());
            }
        }
    }

    #[test]
    fn the_name_and_the_seed_determine_the_sequences() {
        let batch = |seed, name| Task::Recall.batch(4, sizes(Task::Recall), seed, name).unwrap();
        assert_eq!(batch(1, "batch 1"), batch(1, "batch 1"));
        assert_ne!(batch(1, "batch 1").inputs, batch(1, "batch 2").inputs);
        assert_ne!(batch(1, "batch 1").inputs, batch(2, "batch 1").inputs);
        let inputs = batch(1, "batch 1").inputs;
        assert_ne!(inputs[..64], inputs[64..128]);
    }

    #[test]
    fn a_position_is_all_that_is_needed_to_resume() {
        let new = || TaskData { task: Task::Recall, batch_size: 2, sizes: sizes(Task::Recall), seed: 3, batches: 0 };
        let mut first = new();
        let all: Vec<PackedBatch> = (0..5).map(|_| first.next_batch().unwrap()).collect();
        let mut second = new();
        second.seek(DataPosition { epoch: 0, index: 3 }).unwrap();
        assert_eq!(second.next_batch().unwrap(), all[3]);
        assert!(all.iter().all(|batch| *batch != first.validation_batch(0).unwrap()));
    }

    #[test]
    fn most_queries_come_early() {
        let mut rng = Rng::new(1, "slots");
        let drawn: Vec<usize> = (0..500).flat_map(|_| query_slots(24, 8, &mut rng)).collect();
        let early = drawn.iter().filter(|&&i| i < 12).count();
        assert!(early > drawn.len() * 6 / 10 && early < drawn.len() * 9 / 10, "{early} of {}", drawn.len());
    }

    #[test]
    fn sizes_that_are_too_small_are_errors() {
        let error = |length, vocab_size| {
            let sizes = SequenceSize { length, vocab_size };
            Task::Overwrite.batch(1, sizes, 1, "batch 1").unwrap_err().to_string()
        };
        assert_eq!(error(39, 64), "overwrite: sequences of 39 tokens are too short, expected at least 40");
        assert_eq!(error(40, 30), "overwrite: a vocabulary of 30 came, expected 32 to 4294967295");
    }
}
