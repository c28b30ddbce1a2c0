//! Chunks of the gated delta rule: which tokens they have, how a head's rows are read and written, and what is done
//! element by element between products.

pub(crate) mod maps;

use crate::common::tasks::Shared;
use crate::op::Array;
use std::ops::Range;

/// Tokens of a chunk.
pub(crate) const CHUNK: usize = 64;

/// Elements of a square matrix of a chunk.
pub(crate) const SQUARE: usize = CHUNK * CHUNK;

/// All ones: columns that are not scaled.
pub(crate) const ONES: [f32; CHUNK] = [1.0; CHUNK];

/// Rows of tokens and their heads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLayout {
    /// Rows of tokens.
    pub(crate) batch: usize,
    /// Tokens of a row.
    pub(crate) tokens: usize,
    /// Key heads.
    pub(crate) k_heads: usize,
    /// Value heads.
    pub(crate) v_heads: usize,
}

impl HeadLayout {
    /// The chunks of one row; tokens are counted over all rows.
    pub(crate) fn chunks(
        &self,
        row: usize,
    ) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator + use<> {
        split(row * self.tokens..(row + 1) * self.tokens)
    }

    /// The key head that a value head reads.
    pub(crate) fn key_head(&self, head: usize) -> usize {
        head / (self.v_heads / self.k_heads)
    }

    /// The value heads that read a key head.
    pub(crate) fn v_heads_of(&self, key_head: usize) -> Range<usize> {
        let each = self.v_heads / self.k_heads;
        key_head * each..(key_head + 1) * each
    }

    /// Every chunk with every value head, in order: for references.
    pub(crate) fn each(self) -> impl Iterator<Item = (usize, Range<usize>)> {
        (0..self.batch)
            .flat_map(move |row| self.chunks(row))
            .flat_map(move |t| (0..self.v_heads).map(move |g| (g, t.clone())))
    }
}

/// Tokens, chunk by chunk.
pub(crate) fn split(tokens: Range<usize>) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator + use<> {
    pieces(tokens, CHUNK)
}

/// Tokens in pieces of `length`; the last may be shorter.
pub(crate) fn pieces(
    tokens: Range<usize>,
    length: usize,
) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator + use<> {
    (0..tokens.len().div_ceil(length)).map(move |i| {
        let first = tokens.start + i * length;
        first..tokens.end.min(first + length)
    })
}

/// Copies rows of one head: `[heads, head, width]` of a tensor whose tokens have `heads` rows of `width` values.
pub(crate) fn gather(from: &[f32], tokens: Range<usize>, [heads, head, width]: [usize; 3], to: &mut [f32]) {
    for (token, to) in tokens.zip(to.chunks_exact_mut(width)) {
        to.copy_from_slice(&from[(token * heads + head) * width..][..width]);
    }
}

/// Whether a product overwrites its destination or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Overwrites it.
    Set,
    /// Adds to it.
    Add,
}

impl Write {
    /// The first of several writers sets, the others add.
    pub(crate) fn nth(i: usize) -> Self {
        if i == 0 { Write::Set } else { Write::Add }
    }
}

/// The reverse of [`gather`]; nothing where the result has no memory.
///
/// # Safety
/// No other thread touches these rows of this head meanwhile.
pub(crate) unsafe fn scatter(
    to: Shared<'_>,
    tokens: Range<usize>,
    [heads, head, width]: [usize; 3],
    from: &[f32],
    write: Write,
) {
    if to.is_empty() {
        return;
    }
    for (token, from) in tokens.zip(from.chunks_exact(width)) {
        // SAFETY: the caller's promise.
        let to = unsafe { to.part((token * heads + head) * width, width) };
        match write {
            Write::Set => to.copy_from_slice(from),
            Write::Add => to.iter_mut().zip(from).for_each(|(to, x)| *to += x),
        }
    }
}

/// The values of a token's head in an array of `B T heads ..`: for references.
pub(crate) fn row(x: &Array, token: usize, head: usize) -> &[f64] {
    let width = x.shape[3..].iter().product::<usize>();
    &x.data[(token * x.shape[2] + head) * width..][..width]
}

/// As [`row`], for writing.
pub(crate) fn row_mut(x: &mut Array, token: usize, head: usize) -> &mut [f64] {
    let width = x.shape[3..].iter().product::<usize>();
    &mut x.data[(token * x.shape[2] + head) * width..][..width]
}

/// Σ a·b, for references.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `y += a·x`, for references.
pub(crate) fn add(y: &mut [f64], a: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}
