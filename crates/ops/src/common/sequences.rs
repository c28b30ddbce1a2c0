//! Packed sequences.

use alluvium_core::{Error, Result, Tensor};
use std::ops::Range;

/// The tokens of each packed sequence, from the offsets `cu_seqlens`.
///
/// # Errors
/// When there is more than one row of tokens, or the offsets do not rise from 0 to their number.
pub(crate) fn packed(op: &'static str, cu_seqlens: &Tensor, batch: usize, tokens: usize) -> Result<Vec<Range<usize>>> {
    let wrong = |why: String| Err(Error::value(op, why));
    if batch != 1 {
        return wrong(format!("`cu_seqlens` packs the sequences of one row, but B = {batch}"));
    }
    let offsets = &cu_seqlens.ids()?[..];
    if offsets.first() != Some(&0) || offsets.last().map(|&end| end as usize) != Some(tokens) {
        return wrong(format!("`cu_seqlens` is {offsets:?}, expected offsets from 0 to T = {tokens}"));
    }
    if let Some(at) = offsets.windows(2).position(|pair| pair[0] >= pair[1]) {
        let (from, to) = (offsets[at], offsets[at + 1]);
        return wrong(format!("`cu_seqlens` goes from {from} to {to} at {}, expected it to rise", at + 1));
    }
    Ok(offsets.windows(2).map(|pair| pair[0] as usize..pair[1] as usize).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Device;

    #[test]
    fn offsets_that_do_not_rise_from_0_to_t_are_errors() {
        let words = |offsets: &[u32], batch| {
            let tensor = Tensor::from_slice(offsets, [offsets.len()], &Device::cpu()).unwrap();
            packed("conv", &tensor, batch, 5).map_err(|error| error.to_string())
        };
        assert_eq!(words(&[0, 2, 5], 1), Ok(vec![0..2, 2..5]));
        assert_eq!(words(&[0, 5], 2).unwrap_err(), "conv: `cu_seqlens` packs the sequences of one row, but B = 2");
        assert_eq!(words(&[0, 4], 1).unwrap_err(), "conv: `cu_seqlens` is [0, 4], expected offsets from 0 to T = 5");
        assert_eq!(words(&[1, 5], 1).unwrap_err(), "conv: `cu_seqlens` is [1, 5], expected offsets from 0 to T = 5");
        let falls = words(&[0, 3, 3, 5], 1).unwrap_err();
        assert_eq!(falls, "conv: `cu_seqlens` goes from 3 to 3 at 2, expected it to rise");
    }
}
