//! The sizes of the layer, and where each head's projections lie in a row.

use super::CONTRACT;
use alluvium_core::{Dims, Error, Result};

/// The order of the projections of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadLayout {
    /// All queries, all keys, all values, all `z`, all `b`, all `a`.
    Separate,
    /// For each key head its query, its key, the values of its value heads and their `z`; after all of these, for each
    /// key head the `b` and the `a` of its value heads. The layout of qwen3_next's `in_proj_qkvz` and `in_proj_ba`.
    ByKeyHead,
}

/// The sizes of the layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    /// The length of a row of `x`.
    pub(super) row: usize,
    pub(super) channels: usize,
    pub(super) taps: usize,
    pub(super) key_heads: usize,
    pub(super) value_heads: usize,
    pub(super) k: usize,
    pub(super) v: usize,
    pub(super) places: Places,
}

/// Where the projections of the first key head begin, and how far those of the next one are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) q: usize,
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) z: usize,
    pub(super) b: usize,
    pub(super) a: usize,
    /// From key head to key head: of queries and keys, of values and `z`, of `b` and `a`.
    pub(super) strides: [usize; 3],
}

impl Sizes {
    pub(super) fn of(dims: &Dims, layout: HeadLayout) -> Result<Self> {
        let (row, channels, value_heads, k, v) = (dims['W'], dims['C'], dims['G'], dims['K'], dims['V']);
        let values = value_heads * v;
        if dims['L'] < 2 {
            let why = format!("`filter` has {} taps, expected 2 or more: one has no window", dims['L']);
            return Err(Error::value(CONTRACT.op, why));
        }
        let keys = channels.checked_sub(values).filter(|keys| *keys > 0 && keys.is_multiple_of(2 * k));
        let key_heads = keys.map(|keys| keys / (2 * k)).filter(|heads| value_heads.is_multiple_of(*heads));
        let Some(key_heads) = key_heads else {
            let why = format!(
                "`conv_state` has {channels} channels, expected 2 H K + G V with G = {value_heads}, V = {v}, K = {k} and an \
                 H that divides G"
            );
            return Err(Error::value(CONTRACT.op, why));
        };
        let wanted = channels + values + 2 * value_heads;
        if row != wanted {
            let why = format!("`x` has rows of {row} elements, expected 2 H K + 2 G V + 2 G = {wanted}");
            return Err(Error::value(CONTRACT.op, why));
        }
        let (share, all_keys) = (value_heads / key_heads, key_heads * k);
        let places = match layout {
            HeadLayout::Separate => Places {
                q: 0,
                key: all_keys,
                value: 2 * all_keys,
                z: channels,
                b: channels + values,
                a: channels + values + value_heads,
                strides: [k, share * v, share],
            },
            HeadLayout::ByKeyHead => Places {
                q: 0,
                key: k,
                value: 2 * k,
                z: 2 * k + share * v,
                b: channels + values,
                a: channels + values + share,
                strides: [2 * k + 2 * share * v, 2 * k + 2 * share * v, 2 * share],
            },
        };
        let batch = dims['B'];
        Ok(Sizes { batch, row, channels, taps: dims['L'], key_heads, value_heads, k, v, places })
    }

    /// The number of value heads that share a key head.
    pub(super) fn share(&self) -> usize {
        self.value_heads / self.key_heads
    }

    /// Runs of channels that lie together in `x`: the first channel, its place in a row of `x`, and the length.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let Sizes { key_heads, k, v, places, .. } = *self;
        let (all_keys, values) = (key_heads * k, self.share() * v);
        (0..key_heads).flat_map(move |head| {
            [
                (head * k, places.q + head * places.strides[0], k),
                (all_keys + head * k, places.key + head * places.strides[0], k),
                (2 * all_keys + head * values, places.value + head * places.strides[1], values),
            ]
        })
    }
}
