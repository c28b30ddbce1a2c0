//! One copy of the rows; one of the cache before, where it is shared.

use crate::common::gpu::copy::{CopyPlace, RowCopy, duplicate};
use alluvium_core::gpu::Gpu;
use alluvium_core::{Result, Tensor};

pub(super) fn forward(gpu: &Gpu, mut cache: Tensor, rows: &Tensor, at: usize) -> Result<Tensor> {
    if !cache.is_unique() {
        cache = duplicate(gpu, &cache)?;
    }
    let width = rows.elements();
    let place = |tensor, first| CopyPlace { tensor, first, stride: width };
    let first = at * (width / rows.shape()[0]);
    RowCopy { to: place(&cache, first), from: Some(place(rows, 0)), rows: 1, width, repeat: 1 }.copy(gpu)?;
    Ok(cache)
}
