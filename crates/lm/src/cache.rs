//! What a model remembers of the tokens it has read.

use alluvium_core::{Error, Result, Tensor};
use alluvium_ops::{Attention, attention, concat, write_rows};

/// Buffers of keys and values grow by this many tokens.
const GROWTH: usize = 256;

/// What a model remembers of the tokens it has read: one part a layer.
#[derive(Clone, Debug)]
pub struct Cache {
    /// In the order of the layers.
    pub layers: Vec<LayerCache>,
    /// Tokens read so far: the position of the next one.
    pub offset: usize,
    batch: usize,
}

/// What one layer remembers.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one a layer, and most are the large one")]
pub enum LayerCache {
    /// Of a linear layer: of one size, however many tokens there were.
    Delta(DeltaCache),
    /// Of an attention layer: keys and values of every token.
    Attention(AttentionCache),
}

/// The last inputs of the convolution and the state of the delta rule; none before the first token.
#[derive(Clone, Debug, Default)]
pub struct DeltaCache {
    /// `[B, K-1, C]`.
    pub window: Option<Tensor>,
    /// `[B, G, V, K]`, f32.
    pub state: Option<Tensor>,
}

/// The keys and values of every token, a buffer for each sequence.
#[derive(Clone, Debug, Default)]
pub struct AttentionCache {
    sequences: Vec<KeysAndValues>,
    len: usize,
}

/// `[S, G, D]` each, of which the cache's `len` rows are filled.
#[derive(Clone, Debug)]
struct KeysAndValues {
    keys: Option<Tensor>,
    values: Option<Tensor>,
}

impl Cache {
    /// An empty cache for `batch` sequences.
    pub fn new(batch: usize, layers: Vec<LayerCache>) -> Self {
        Cache { layers, offset: 0, batch }
    }

    /// The positions of the next `tokens` tokens, `[B, T]`, once `ids` is known to be `[B, T]`.
    ///
    /// # Errors
    /// When `ids` has another batch.
    pub fn positions(&self, ids: &Tensor) -> Result<Tensor> {
        let &[batch, tokens] = ids.shape().dims() else {
            return Err(Error::value("step", format!("`ids` is {}, expected [B, T]", ids.shape())));
        };
        if batch != self.batch {
            let why = format!("`ids` has {batch} sequences, the cache was made for {}", self.batch);
            return Err(Error::value("step", why));
        }
        let first = u32::try_from(self.offset).map_err(|_| Error::value("step", "positions end at 2^32"))?;
        let row = first..first.saturating_add(tokens as u32);
        let positions: Vec<u32> = (0..batch).flat_map(|_| row.clone()).collect();
        Tensor::from_slice(&positions, [batch, tokens], ids.device())
    }
}

impl AttentionCache {
    /// Takes in `k` and `v` `[B, T, G, D]` and attends from `q` `[B, T, A, D]` to all tokens so far.
    ///
    /// # Errors
    /// As the operations; the cache is of no use after one.
    pub fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, scale: f32) -> Result<Tensor> {
        let &[batch, tokens, kv_heads, head] = k.shape().dims() else {
            return Err(Error::value("cache", format!("keys are {}, expected [B, T, G, D]", k.shape())));
        };
        self.sequences.resize(batch, KeysAndValues { keys: None, values: None });
        let len = self.len + tokens;
        let mut results = Vec::with_capacity(batch);
        for (index, sequence) in self.sequences.iter_mut().enumerate() {
            let one = |x: &Tensor| x.rows(index, 1)?.reshape([tokens, kv_heads, head]);
            append(&mut sequence.keys, &one(k)?, self.len)?;
            append(&mut sequence.values, &one(v)?, self.len)?;
            let seen = |x: &Option<Tensor>| match x {
                Some(x) => x.rows(0, len)?.reshape([1, len, kv_heads, head]),
                None => Err(Error::value("cache", "an earlier error left it empty")),
            };
            let (keys, values) = (seen(&sequence.keys)?, seen(&sequence.values)?);
            let q = q.rows(index, 1)?;
            results.push(attention(Attention { q: &q, k: &keys, v: &values, cu_seqlens: None, scale })?);
        }
        self.len = len;
        match &results[..] {
            [one] => Ok(one.clone()),
            several => concat(&several.iter().collect::<Vec<_>>(), 0),
        }
    }
}

/// Writes `rows [T, G, D]` behind the `len` rows that `buffer` holds, in place; a full buffer moves to a larger one.
fn append(buffer: &mut Option<Tensor>, rows: &Tensor, len: usize) -> Result<()> {
    let needed = len + rows.shape()[0];
    let old = buffer.take();
    let room = match old {
        Some(old) if old.shape()[0] >= needed => old,
        old => {
            let shape = rows.shape().with(0, needed.next_multiple_of(GROWTH));
            let room = Tensor::zeros(shape, rows.dtype(), rows.device())?;
            match old {
                Some(old) => write_rows(room, &old.rows(0, len)?, 0)?,
                None => room,
            }
        }
    };
    *buffer = Some(write_rows(room, rows, len)?);
    Ok(())
}
