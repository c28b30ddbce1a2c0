//! Tasks whose data is a program: what a memory can do, without any text.

use crate::Packed;
use alluvium_core::rng::Rng;
use alluvium_core::{Error, Result};

/// Where nothing is asked: a target that does not count.
pub(crate) const NO_ANSWER: u32 = u32::MAX;

/// A task of memory. Pairs of a key and its value come first, then the keys alone; at each the answer is its value.
///
/// Keys are from the lower half of the vocabulary without 0, values from its upper half; both are distinct within a
/// sequence. What is no pair and no question is 0. Questions come soon after the pairs more often than late: the share
/// of a place falls as a power of its distance.
///
/// Source: Arora et al. 2023, arXiv:2312.04927, whose other tokens are random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Task {
    /// 8 pairs, each key asked once: multi-query associative recall.
    Recall,
    /// 4 keys, each written four times in random order; the value written last is the answer.
    Overwrite,
}

/// The power of the distance with which questions thin out.
const POWER: f64 = 0.01;

impl Task {
    /// Its name on the command line and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Task::Recall => "recall",
            Task::Overwrite => "overwrite",
        }
    }

    /// Keys of a sequence.
    pub fn keys(self) -> usize {
        match self {
            Task::Recall => 8,
            Task::Overwrite => 4,
        }
    }

    /// Times that each key is written.
    pub fn writes(self) -> usize {
        match self {
            Task::Recall => 1,
            Task::Overwrite => 4,
        }
    }

    /// Sequences of `length` tokens of `vocabulary` words, packed. The seed and the name decide them all: another name
    /// gives other sequences.
    ///
    /// # Errors
    /// When the sequences are too short for the pairs and the questions, or the words are too few.
    pub fn batch(self, sequences: usize, [length, vocabulary]: [usize; 2], seed: u64, name: &str) -> Result<Packed> {
        let (keys, pairs) = (self.keys(), self.keys() * self.writes());
        if length < 2 * (pairs + keys) {
            let why = format!("sequences of {length} tokens are too short, {} are needed", 2 * (pairs + keys));
            return Err(Error::value(self.name(), why));
        }
        if vocabulary / 2 < pairs.max(keys + 1) {
            let why = format!("a vocabulary of {vocabulary} is too small, {} are needed", 2 * pairs.max(keys + 1));
            return Err(Error::value(self.name(), why));
        }
        let mut rng = Rng::new(seed, &format!("{} {name}", self.name()));
        let mut batch = Packed::default();
        for _ in 0..sequences {
            batch.offsets.push(batch.inputs.len() as u32);
            self.push(&mut batch, [length, vocabulary], &mut rng);
            batch.positions.extend(0..length as u32);
        }
        batch.offsets.push(batch.inputs.len() as u32);
        Ok(batch)
    }

    /// One sequence: its tokens, and at each question the answer.
    fn push(self, batch: &mut Packed, [length, vocabulary]: [usize; 2], rng: &mut Rng) {
        let pairs = self.keys() * self.writes();
        let half = vocabulary as u32 / 2;
        let keys = distinct(1..half, self.keys(), rng);
        let values = distinct(half..vocabulary as u32, pairs, rng);
        let mut order: Vec<usize> = (0..pairs).map(|i| i % keys.len()).collect();
        rng.shuffle(&mut order);
        let (mut inputs, mut targets) = (vec![0; length], vec![NO_ANSWER; length]);
        let mut latest = vec![0; keys.len()];
        for (i, (&key, &value)) in order.iter().zip(&values).enumerate() {
            (inputs[2 * i], inputs[2 * i + 1]) = (keys[key], value);
            latest[key] = value;
        }
        let mut asked: Vec<usize> = (0..keys.len()).collect();
        rng.shuffle(&mut asked);
        for (key, place) in asked.into_iter().zip(places(length / 2 - pairs, keys.len(), rng)) {
            let at = 2 * (pairs + place);
            (inputs[at], targets[at]) = (keys[key], latest[key]);
        }
        batch.inputs.extend(inputs);
        batch.targets.extend(targets);
    }
}

fn distinct(words: std::ops::Range<u32>, count: usize, rng: &mut Rng) -> Vec<u32> {
    let mut words: Vec<u32> = words.collect();
    rng.shuffle(&mut words);
    words.truncate(count);
    words
}

/// `count` of `space` places, drawn without putting back; place `i` weighs `(i + 1)^(POWER − 1)`.
fn places(space: usize, count: usize, rng: &mut Rng) -> Vec<usize> {
    // the first of exponential clocks whose rates are the weights is a draw by weight, and so are the next ones
    let clock = |i: usize, rng: &mut Rng| -(1.0 - rng.uniform()).ln() * ((i + 1) as f64).powf(1.0 - POWER);
    let mut clocks: Vec<(f64, usize)> = (0..space).map(|i| (clock(i, rng), i)).collect();
    clocks.sort_by(|a, b| a.0.total_cmp(&b.0));
    clocks.into_iter().take(count).map(|(_, i)| i).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(task: Task) -> [usize; 2] {
        match task {
            Task::Recall => [64, 128],
            Task::Overwrite => [40, 64],
        }
    }

    #[test]
    fn every_key_is_asked_once_and_its_answer_is_the_value_written_last() {
        for task in [Task::Recall, Task::Overwrite] {
            let [length, vocabulary] = sizes(task);
            let pairs = task.keys() * task.writes();
            let batch = task.batch(50, [length, vocabulary], 7, "step 1").unwrap();
            assert_eq!(batch.offsets, (0..=50).map(|i| i * length as u32).collect::<Vec<_>>());
            let rows =
                batch.inputs.chunks(length).zip(batch.targets.chunks(length)).zip(batch.positions.chunks(length));
            for ((inputs, targets), positions) in rows {
                assert_eq!(positions, (0..length as u32).collect::<Vec<_>>());
                let written = inputs[..2 * pairs].chunks(2).map(|p| (p[0], p[1])).collect::<Vec<_>>();
                for &(key, value) in &written {
                    assert!((1..vocabulary as u32 / 2).contains(&key) && (vocabulary as u32 / 2..).contains(&value));
                    assert_eq!(written.iter().filter(|(k, _)| *k == key).count(), task.writes());
                    assert_eq!(written.iter().filter(|(_, v)| *v == value).count(), 1);
                }
                assert!(targets[..2 * pairs].iter().all(|&t| t == NO_ANSWER));
                let mut asked = Vec::new();
                for at in (2 * pairs..length).filter(|&at| targets[at] != NO_ANSWER) {
                    let last = written.iter().rev().find(|(key, _)| *key == inputs[at]).unwrap();
                    assert_eq!(targets[at], last.1);
                    asked.push(inputs[at]);
                }
                assert!((2 * pairs..length).all(|at| (inputs[at] == 0) == (targets[at] == NO_ANSWER)));
                asked.sort_unstable();
                asked.dedup();
                assert_eq!(asked.len(), task.keys());
            }
        }
    }

    #[test]
    fn the_name_and_the_seed_decide_the_sequences() {
        let batch = |seed, name| Task::Recall.batch(4, [64, 128], seed, name).unwrap();
        assert_eq!(batch(1, "step 1"), batch(1, "step 1"));
        assert_ne!(batch(1, "step 1").inputs, batch(1, "step 2").inputs);
        assert_ne!(batch(1, "step 1").inputs, batch(2, "step 1").inputs);
        let inputs = batch(1, "step 1").inputs;
        assert_ne!(inputs[..64], inputs[64..128]);
    }

    #[test]
    fn questions_come_soon_more_often_than_late() {
        let mut rng = Rng::new(1, "places");
        let drawn: Vec<usize> = (0..500).flat_map(|_| places(24, 8, &mut rng)).collect();
        let early = drawn.iter().filter(|&&i| i < 12).count();
        assert!(early > drawn.len() * 6 / 10 && early < drawn.len() * 9 / 10, "{early} of {}", drawn.len());
    }

    #[test]
    fn what_does_not_fit_is_refused_in_words() {
        let error = |sizes| Task::Overwrite.batch(1, sizes, 1, "step 1").unwrap_err().to_string();
        assert_eq!(error([39, 64]), "overwrite: sequences of 39 tokens are too short, 40 are needed");
        assert_eq!(error([40, 30]), "overwrite: a vocabulary of 30 is too small, 32 are needed");
    }
}
