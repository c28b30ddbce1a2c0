//! The cache of an attention layer.

use alluvium_core::{Error, Result, Tensor};
use alluvium_ops::write_rows;

/// Buffers of keys and values grow by this many tokens.
const GROWTH: usize = 256;

/// The keys and values of every token, a buffer for each sequence.
#[derive(Clone, Debug, Default)]
pub struct AttentionCache {
    pub(super) sequences: Vec<KvBuffer>,
}

/// `[S, G, D]` each, of which `len` rows are filled.
#[derive(Clone, Debug, Default)]
pub(crate) struct KvBuffer {
    pub(crate) keys: Option<Tensor>,
    pub(crate) values: Option<Tensor>,
    pub(crate) len: usize,
}

impl AttentionCache {
    pub(crate) fn of(sequence: KvBuffer) -> Self {
        AttentionCache { sequences: vec![sequence] }
    }

    pub(crate) fn sequences(&self) -> &[KvBuffer] {
        &self.sequences
    }

    /// Appends keys and values `[B, T, G, D]`; [`AttentionCache::view`] has them with all earlier ones.
    ///
    /// # Errors
    /// When memory runs out. The cache cannot be used after an error.
    pub fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<()> {
        let &[batch, tokens, kv_heads, head] = k.shape().dims() else {
            return Err(Error::value("cache", format!("keys are {}, expected [B, T, G, D]", k.shape())));
        };
        self.sequences.resize(batch, KvBuffer::default());
        for (index, sequence) in self.sequences.iter_mut().enumerate() {
            let own = |x: &Tensor| x.rows(index, 1)?.reshape([tokens, kv_heads, head]);
            append(&mut sequence.keys, &own(k)?, sequence.len)?;
            append(&mut sequence.values, &own(v)?, sequence.len)?;
            sequence.len += tokens;
        }
        Ok(())
    }

    /// All keys and values of a sequence of the batch.
    ///
    /// # Errors
    /// When the sequence has read nothing or is not in the batch.
    pub fn view(&self, index: usize) -> Result<KvView> {
        let empty = || Error::value("cache", format!("sequence {index} has no keys and values"));
        let sequence = self.sequences.get(index).ok_or_else(empty)?;
        let view = |x: &Option<Tensor>| {
            let x = x.as_ref().ok_or_else(empty)?;
            x.rows(0, sequence.len)?.reshape([1, sequence.len, x.shape()[1], x.shape()[2]])
        };
        Ok(KvView { keys: view(&sequence.keys)?, values: view(&sequence.values)? })
    }
}

/// The keys and values of one sequence, `[1, S, G, D]` each.
#[derive(Clone, Debug)]
pub struct KvView {
    /// All keys so far.
    pub keys: Tensor,
    /// All values so far.
    pub values: Tensor,
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
