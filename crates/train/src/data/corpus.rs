//! Tokens of documents, packed into batches without padding.
//!
//! A document is cut into segments of `max_seq_length` tokens; shorter ones share a block of that length. A batch is a
//! fixed number of blocks in one row.

use super::{DataPosition, PackedBatch, TrainingData};
use alluvium_core::rng::Rng;
use alluvium_core::{Error, Result};
use std::collections::VecDeque;

/// Documents as token ids.
#[derive(Clone, Debug)]
pub struct Corpus {
    documents: Vec<Vec<u32>>,
    tokens: usize,
    fingerprint: u64,
}

/// The number of waiting segments that are compared to fill the rest of a block.
const LOOKAHEAD: usize = 64;

/// A part of a document: inputs `first..first + length`, targets one later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    document: usize,
    first: usize,
    length: usize,
}

impl Corpus {
    /// Keeps the documents of at least two tokens: the last token of a document is only ever a target.
    ///
    /// # Errors
    /// [`Kind::Value`](alluvium_core::Kind::Value) when no document has two tokens.
    pub fn new(documents: Vec<Vec<u32>>) -> Result<Self> {
        let documents: Vec<Vec<u32>> = documents.into_iter().filter(|d| d.len() > 1).collect();
        let tokens = documents.iter().map(|d| d.len() - 1).sum();
        if tokens == 0 {
            return Err(Error::value("corpus", "no document has two tokens; give more text"));
        }
        let step = |hash: u64, x: u64| (hash ^ x).wrapping_mul(0x0100_0000_01b3);
        let fingerprint = documents.iter().fold(0xcbf2_9ce4_8422_2325, |hash, d| {
            d.iter().fold(step(hash, d.len() as u64), |hash, &t| step(hash, u64::from(t)))
        });
        Ok(Corpus { documents, tokens, fingerprint })
    }

    /// The number of tokens that have a successor: the length of an epoch.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The documents.
    pub fn documents(&self) -> &[Vec<u32>] {
        &self.documents
    }

    /// A hash (FNV-1a) of all tokens and document lengths.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// All tokens once, in order, in batches of at most `tokens` tokens and segments of at most `longest`: for
    /// validation.
    pub fn batches(&self, tokens: usize, longest: usize) -> Vec<PackedBatch> {
        let mut batches: Vec<PackedBatch> = Vec::new();
        for segment in self.segments(longest.min(tokens)) {
            match batches.last_mut() {
                Some(batch) if batch.tokens() + segment.length <= tokens => self.push(batch, segment),
                _ => {
                    let mut batch = PackedBatch::default();
                    self.push(&mut batch, segment);
                    batches.push(batch);
                }
            }
        }
        batches
    }

    /// Mean of −log p over the targets of `validation`, with p the frequency of each token among this corpus's targets
    /// (one added to each count): the loss of a model that knows token frequencies alone.
    pub fn unigram_loss(&self, validation: &Corpus, vocab_size: usize) -> f64 {
        let mut counts = vec![1.0; vocab_size];
        let targets = |corpus: &Corpus| -> Vec<u32> { corpus.documents.iter().flat_map(|d| d[1..].to_vec()).collect() };
        for token in targets(self) {
            counts[token as usize % vocab_size] += 1.0;
        }
        let total: f64 = counts.iter().sum();
        let targets = targets(validation);
        targets.iter().map(|&t| (total / counts[t as usize % vocab_size]).ln()).sum::<f64>() / targets.len() as f64
    }

    fn push(&self, batch: &mut PackedBatch, Segment { document, first, length }: Segment) {
        let tokens = &self.documents[document];
        batch.push(&tokens[first..first + length], &tokens[first + 1..=first + length]);
    }

    /// Every document in segments of `longest` tokens; the last one of a document may be shorter.
    fn segments(&self, longest: usize) -> impl Iterator<Item = Segment> {
        let longest = longest.max(1);
        self.documents.iter().enumerate().flat_map(move |(document, tokens)| {
            let end = tokens.len() - 1;
            let segment = move |first| Segment { document, first, length: longest.min(end - first) };
            (0..end).step_by(longest).map(segment)
        })
    }

    /// The blocks of an epoch, in random order: each has `length` tokens. The order depends on the seed and the epoch
    /// alone. The last block is filled up with the segments that come first.
    fn blocks(&self, length: usize, seed: u64, epoch: u64) -> Vec<Vec<Segment>> {
        let mut rng = Rng::new(seed, &format!("epoch {epoch}"));
        let mut segments: Vec<Segment> = self.segments(length).collect();
        rng.shuffle(&mut segments);
        let fill: Vec<Segment> = segments.iter().copied().take(length).collect();
        let (whole, short): (Vec<Segment>, Vec<Segment>) = segments.into_iter().partition(|s| s.length == length);
        let mut blocks: Vec<Vec<Segment>> = whole.into_iter().map(|segment| vec![segment]).collect();
        let mut waiting = VecDeque::from(short);
        let mut again = fill.iter().cycle();
        while !waiting.is_empty() {
            let (mut block, mut room) = (Vec::new(), length);
            while room > 0 {
                let repeated = || again.next().map(|segment| Segment { length: segment.length.min(room), ..*segment });
                let Some(segment) = fitting(&mut waiting, room).or_else(repeated) else { break };
                room -= segment.length;
                block.push(segment);
            }
            blocks.push(block);
        }
        rng.shuffle(&mut blocks);
        blocks
    }
}

/// Takes the longest of the next waiting segments that fits; where none does, the first part of the first one.
fn fitting(waiting: &mut VecDeque<Segment>, room: usize) -> Option<Segment> {
    let next = waiting.iter().take(LOOKAHEAD).enumerate().filter(|(_, segment)| segment.length <= room);
    if let Some((index, _)) = next.max_by_key(|(index, segment)| (segment.length, usize::MAX - index)) {
        return waiting.remove(index);
    }
    let segment = waiting.pop_front()?;
    waiting.push_front(Segment { first: segment.first + room, length: segment.length - room, ..segment });
    Some(Segment { length: room, ..segment })
}

/// A [`Corpus`] as a source of training batches: `batch_size` blocks of `block` tokens each.
///
/// A position's `index` counts blocks.
#[derive(Debug)]
pub struct TokenData {
    corpus: Corpus,
    seed: u64,
    block: usize,
    batch_size: usize,
    position: DataPosition,
    /// The blocks of the position's epoch.
    blocks: Vec<Vec<Segment>>,
}

impl TokenData {
    /// Batches of `batch_size` blocks of `block` tokens, in an order that depends on `seed`.
    ///
    /// # Errors
    /// [`Kind::Value`](alluvium_core::Kind::Value) when a size is 0 or a batch has more than `u32::MAX` tokens.
    pub fn new(corpus: Corpus, block: usize, batch_size: usize, seed: u64) -> Result<Self> {
        if batch_size.checked_mul(block).is_none_or(|tokens| tokens == 0 || tokens > u32::MAX as usize) {
            let why = format!("{batch_size} blocks of {block} tokens came, expected 1 to {} tokens in all", u32::MAX);
            return Err(Error::value("batch", why));
        }
        let blocks = corpus.blocks(block, seed, 0);
        Ok(TokenData { corpus, seed, block, batch_size, position: DataPosition::default(), blocks })
    }

    /// The documents.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }
}

impl TrainingData for TokenData {
    fn next_batch(&mut self) -> Result<PackedBatch> {
        let mut batch = PackedBatch::default();
        for _ in 0..self.batch_size {
            if self.position.index as usize >= self.blocks.len() {
                self.seek(DataPosition { epoch: self.position.epoch + 1, index: 0 })?;
            }
            for &segment in &self.blocks[self.position.index as usize] {
                self.corpus.push(&mut batch, segment);
            }
            self.position.index += 1;
        }
        Ok(batch)
    }

    fn position(&self) -> DataPosition {
        self.position
    }

    fn seek(&mut self, position: DataPosition) -> Result<()> {
        if position.epoch != self.position.epoch {
            self.blocks = self.corpus.blocks(self.block, self.seed, position.epoch);
        }
        if position.index > self.blocks.len() as u64 {
            let why = format!("block {} of an epoch came, this text has {}", position.index, self.blocks.len());
            return Err(Error::value("position", why));
        }
        self.position = position;
        Ok(())
    }

    fn fingerprint(&self) -> u64 {
        self.corpus.fingerprint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Document d holds 1000 d, 1000 d + 1, …: each token tells its place.
    fn corpus(lengths: &[u32]) -> Corpus {
        let documents = (0..).zip(lengths).map(|(d, &length)| (0..length).map(|t| 100_000 * d + t).collect());
        Corpus::new(documents.collect()).unwrap()
    }

    fn lengths(batch: &PackedBatch) -> Vec<u32> {
        batch.offsets.windows(2).map(|w| w[1] - w[0]).collect()
    }

    #[test]
    fn every_token_is_seen_once_an_epoch_with_its_own_successor() {
        for block in [1, 6, 16, 1000] {
            let corpus = corpus(&[5, 8, 11, 14, 1, 17, 20, 23]);
            let all = corpus.tokens();
            let mut data = TokenData::new(corpus, block, 2, 11).unwrap();
            let mut seen = Vec::new();
            while data.position().epoch == 0 && seen.len() < all {
                let batch = data.next_batch().unwrap();
                assert_eq!((batch.tokens(), batch.positions.len()), (2 * block, 2 * block));
                assert!(batch.inputs.iter().zip(&batch.targets).all(|(a, b)| a + 1 == *b));
                assert!(lengths(&batch).iter().all(|&n| (1..=block as u32).contains(&n)));
                for w in batch.offsets.windows(2) {
                    let range = w[0] as usize..w[1] as usize;
                    assert_eq!(batch.positions[range.clone()], (0..range.len() as u32).collect::<Vec<_>>());
                    assert!(batch.inputs[range].windows(2).all(|p| p[0] + 1 == p[1]));
                }
                seen.extend(batch.inputs);
            }
            let repeated = seen.len() - all;
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), all);
            assert!(repeated < 3 * block || all < block, "{repeated}");
        }
    }

    #[test]
    fn segments_have_the_length_that_is_asked_for() {
        let corpus = corpus(&[60_001, 30, 700, 45, 2_000]);
        for block in [256, 2_048, 16_384] {
            let mut data = TokenData::new(corpus.clone(), block, 1, 0).unwrap();
            let mut whole = 0;
            while data.position().epoch == 0 {
                whole += lengths(&data.next_batch().unwrap()).iter().filter(|&&n| n as usize == block).count();
            }
            assert!(whole >= 60_000 / block, "{whole} whole segments of {block}");
        }
    }

    #[test]
    fn documents_that_fit_a_block_together_are_not_cut() {
        let corpus = corpus(&[65, 65, 33, 33, 97, 129, 65, 65]);
        let mut data = TokenData::new(corpus, 128, 1, 5).unwrap();
        let mut segments = Vec::new();
        while data.position().epoch == 0 {
            segments.extend(lengths(&data.next_batch().unwrap()));
        }
        let whole = segments.iter().filter(|n| [64, 32, 96, 128].contains(n)).count();
        assert!(whole >= 8, "{segments:?}");
    }

    #[test]
    fn a_position_is_all_that_is_needed_to_resume() {
        let lengths = [5, 8, 11, 14, 17, 20, 23];
        let mut whole = TokenData::new(corpus(&lengths), 4, 3, 7).unwrap();
        let all: Vec<PackedBatch> = (0..24).map(|_| whole.next_batch().unwrap()).collect();
        assert!(whole.position().epoch > 0);
        for stop in 0..24 {
            let mut first = TokenData::new(corpus(&lengths), 4, 3, 7).unwrap();
            (0..stop).for_each(|_| drop(first.next_batch().unwrap()));
            let mut second = TokenData::new(corpus(&lengths), 4, 3, 7).unwrap();
            second.seek(first.position()).unwrap();
            let rest: Vec<PackedBatch> = (stop..24).map(|_| second.next_batch().unwrap()).collect();
            assert_eq!(rest, all[stop..]);
        }
        let error = whole.seek(DataPosition { epoch: 0, index: 99 }).unwrap_err().to_string();
        assert!(error.contains("block 99 of an epoch came"), "{error}");
    }

    #[test]
    fn validation_batches_hold_each_token_once() {
        let corpus = corpus(&[5, 80, 11, 14]);
        let batches = corpus.batches(9, 5);
        assert_eq!(batches.iter().map(PackedBatch::tokens).sum::<usize>(), corpus.tokens());
        assert!(batches.iter().all(|batch| batch.tokens() <= 9 && lengths(batch).iter().all(|&n| n <= 5)));
        assert_eq!(batches[0].offsets, [0, 4, 9]);
    }

    #[test]
    fn the_unigram_loss_of_two_even_tokens_is_ln_2() {
        let corpus = Corpus::new(vec![[0, 1].repeat(5000)]).unwrap();
        assert!((corpus.unigram_loss(&corpus, 2) - std::f64::consts::LN_2).abs() < 1e-4);
    }

    #[test]
    fn another_text_has_another_fingerprint() {
        let other = Corpus::new(vec![vec![1, 2, 3]]).unwrap();
        assert_eq!(corpus(&[5, 6]).fingerprint(), corpus(&[5, 6]).fingerprint());
        assert_ne!(corpus(&[5, 6]).fingerprint(), other.fingerprint());
    }
}
