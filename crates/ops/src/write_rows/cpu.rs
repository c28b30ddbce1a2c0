//! One copy of the rows; one of the cache before, where it is shared.

use crate::common::stored::by_element;
use alluvium_core::cpu::Cpu;
use alluvium_core::{Result, Tensor};

pub(super) fn forward(cpu: &Cpu, mut cache: Tensor, rows: &Tensor, at: usize) -> Result<Tensor> {
    by_element!(cache.dtype(), T => {
        let new = rows.slice::<T>()?;
        let first = at * (new.len() / rows.shape()[0]);
        if let Some(place) = cache.slice_mut::<T>() {
            place[first..][..new.len()].copy_from_slice(new);
            return Ok(cache);
        }
        let mut copy = cpu.buffer::<T>(cache.elements())?;
        copy.copy_from_slice(cache.slice::<T>()?);
        copy[first..][..new.len()].copy_from_slice(new);
        cpu.wrap(copy, cache.shape())
    })
}
