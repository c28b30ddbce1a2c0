//! Tokens, packed into batches without padding.
//!
//! A batch is one row of `batch_size · max_seq_length` tokens: pieces of documents side by side, kept apart by
//! `cu_seqlens`. Nothing leaks from one piece to the next and no token is wasted.

use alluvium_core::rng::Rng;
use alluvium_core::{Device, Error, Result, Tensor};

/// Tokens of documents, in training order by seed.
#[derive(Debug)]
pub struct Corpus {
    documents: Vec<Vec<u32>>,
    tokens: usize,
    seed: u64,
}

/// Where the next batch begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Times the whole corpus was seen.
    pub epoch: u64,
    /// The place in this epoch's order.
    pub document: usize,
    /// The token in that document.
    pub token: usize,
}

/// A batch: segments of documents in one row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// The tokens.
    pub inputs: Vec<u32>,
    /// The token after each.
    pub targets: Vec<u32>,
    /// The place of each token in its segment.
    pub positions: Vec<u32>,
    /// Where segments begin, and the end: one more than there are segments.
    pub offsets: Vec<u32>,
}

impl Corpus {
    /// Documents of at least two tokens: the last token of a document is only ever a target.
    ///
    /// # Errors
    /// When no document has two tokens.
    pub fn new(documents: Vec<Vec<u32>>, seed: u64) -> Result<Self> {
        let documents: Vec<Vec<u32>> = documents.into_iter().filter(|d| d.len() > 1).collect();
        let tokens = documents.iter().map(|d| d.len() - 1).sum();
        if tokens == 0 {
            return Err(Error::value("corpus", "no document has two tokens; give more text"));
        }
        Ok(Corpus { documents, tokens, seed })
    }

    /// Tokens that have a successor: the length of an epoch.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// A number that tells one corpus from another.
    pub fn fingerprint(&self) -> u64 {
        let step = |hash: u64, x: u64| (hash ^ x).wrapping_mul(0x0100_0000_01b3);
        self.documents.iter().fold(0xcbf2_9ce4_8422_2325, |hash, d| {
            d.iter().fold(step(hash, d.len() as u64), |hash, &t| step(hash, u64::from(t)))
        })
    }

    /// Whether there is a token to go on with at a cursor.
    pub fn has(&self, cursor: &Cursor) -> bool {
        let document = self.order(cursor.epoch).get(cursor.document).and_then(|&i| self.documents.get(i));
        document.is_some_and(|document| document.len() - 1 > cursor.token)
    }

    /// The next batch of `tokens` tokens in segments of at most `longest`; `cursor` moves on.
    ///
    /// The order of an epoch depends on the seed and the epoch alone, so a cursor is all that resuming needs.
    pub fn next(&self, cursor: &mut Cursor, tokens: usize, longest: usize) -> Packed {
        let mut batch = Packed::default();
        let mut order = self.order(cursor.epoch);
        while batch.inputs.len() < tokens {
            let document = &self.documents[order[cursor.document]];
            let room = (tokens - batch.inputs.len()).min(longest);
            batch.push(document, cursor.token, room);
            cursor.token += room.min(document.len() - 1 - cursor.token);
            if cursor.token + 1 == document.len() {
                *cursor = Cursor { document: cursor.document + 1, token: 0, ..*cursor };
            }
            if cursor.document == self.documents.len() {
                *cursor = Cursor { epoch: cursor.epoch + 1, document: 0, token: 0 };
                order = self.order(cursor.epoch);
            }
        }
        batch.offsets.push(batch.inputs.len() as u32);
        batch
    }

    /// All tokens once, in order, in batches of at most `tokens`: what a held-out loss is measured on.
    pub fn once(&self, tokens: usize, longest: usize) -> Vec<Packed> {
        let mut batches = vec![Packed::default()];
        for document in &self.documents {
            let mut token = 0;
            while token + 1 < document.len() {
                let full = batches.last().is_none_or(|b| b.inputs.len() == tokens);
                if full {
                    batches.push(Packed::default());
                }
                let Some(batch) = batches.last_mut() else { break };
                let room = (tokens - batch.inputs.len()).min(longest);
                batch.push(document, token, room);
                token += room;
            }
        }
        batches.iter_mut().for_each(|b| b.offsets.push(b.inputs.len() as u32));
        batches
    }

    fn order(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.documents.len()).collect();
        Rng::new(self.seed, &format!("epoch {epoch}")).shuffle(&mut order);
        order
    }

    /// The mean of −log p over another corpus's targets, with p the share of each token among this one's (one added to
    /// each count): what a model that knows nothing but frequencies reaches.
    pub fn unigram_loss(&self, held_out: &Corpus, vocabulary: usize) -> f64 {
        let mut counts = vec![1.0; vocabulary];
        let targets =
            |corpus: &Corpus| corpus.documents.iter().flat_map(|d| d[1..].iter().copied()).collect::<Vec<_>>();
        for token in targets(self) {
            counts[token as usize % vocabulary] += 1.0;
        }
        let total: f64 = counts.iter().sum();
        let held = targets(held_out);
        held.iter().map(|&t| (total / counts[t as usize % vocabulary]).ln()).sum::<f64>() / held.len() as f64
    }
}

impl Packed {
    fn push(&mut self, document: &[u32], first: usize, room: usize) {
        let end = (first + room).min(document.len() - 1);
        self.offsets.push(self.inputs.len() as u32);
        self.inputs.extend_from_slice(&document[first..end]);
        self.targets.extend_from_slice(&document[first + 1..=end]);
        self.positions.extend(0..(end - first) as u32);
    }

    /// The inputs, positions and offsets as tensors: `[1, T]`, `[1, T]`, `[N+1]`; and the targets `[T]`.
    pub fn tensors(&self, device: &Device) -> Result<[Tensor; 4]> {
        let n = self.inputs.len();
        Ok([
            Tensor::from_slice(&self.inputs, [1, n], device)?,
            Tensor::from_slice(&self.positions, [1, n], device)?,
            Tensor::from_slice(&self.offsets, [self.offsets.len()], device)?,
            Tensor::from_slice(&self.targets, [n], device)?,
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus() -> Corpus {
        let documents = (0..7u32).map(|d| (0..5 + 3 * d).map(|t| 100 * d + t).collect()).collect();
        Corpus::new(documents, 11).unwrap()
    }

    #[test]
    fn every_token_is_seen_once_an_epoch_with_its_own_successor() {
        let corpus = corpus();
        let mut cursor = Cursor::default();
        let (mut seen, mut batches) = (Vec::new(), 0);
        while seen.len() < corpus.tokens() {
            let batch = corpus.next(&mut cursor, 16, 6);
            assert_eq!((batch.inputs.len(), batch.positions.len()), (16, 16));
            assert!(batch.inputs.iter().zip(&batch.targets).all(|(a, b)| a + 1 == *b));
            let lengths: Vec<u32> = batch.offsets.windows(2).map(|w| w[1] - w[0]).collect();
            assert!(lengths.iter().all(|&n| (1..=6).contains(&n)), "{lengths:?}");
            for w in batch.offsets.windows(2) {
                let at = w[0] as usize..w[1] as usize;
                assert_eq!(batch.positions[at.clone()], (0..at.len() as u32).collect::<Vec<_>>());
                assert!(batch.inputs[at].windows(2).all(|p| p[0] + 1 == p[1]));
            }
            seen.extend(batch.inputs);
            batches += 1;
        }
        seen.truncate(corpus.tokens());
        seen.sort_unstable();
        seen.dedup();
        assert_eq!((seen.len(), batches), (corpus.tokens(), corpus.tokens().div_ceil(16)));
    }

    #[test]
    fn a_cursor_is_all_that_is_needed_to_go_on() {
        let corpus = corpus();
        let mut whole = Cursor::default();
        let all: Vec<Packed> = (0..12).map(|_| corpus.next(&mut whole, 10, 4)).collect();
        assert!(whole.epoch > 0);
        for stop in 0..12 {
            let mut first = Cursor::default();
            (0..stop).for_each(|_| drop(corpus.next(&mut first, 10, 4)));
            let mut again = first;
            let rest: Vec<Packed> = (stop..12).map(|_| corpus.next(&mut again, 10, 4)).collect();
            assert_eq!(rest, all[stop..]);
        }
    }

    #[test]
    fn a_held_out_pass_sees_each_token_once() {
        let corpus = corpus();
        let tokens: usize = corpus.once(9, 5).iter().map(|b| b.inputs.len()).sum();
        assert_eq!(tokens, corpus.tokens());
    }

    #[test]
    fn the_unigram_loss_of_two_even_tokens_is_ln_2() {
        let corpus = Corpus::new(vec![[0, 1].repeat(5000)], 1).unwrap();
        assert!((corpus.unigram_loss(&corpus, 2) - std::f64::consts::LN_2).abs() < 1e-4);
    }

    #[test]
    fn another_text_has_another_fingerprint() {
        let other = Corpus::new(vec![vec![1, 2, 3]], 11).unwrap();
        assert_eq!(corpus().fingerprint(), corpus().fingerprint());
        assert_ne!(corpus().fingerprint(), other.fingerprint());
    }
}
