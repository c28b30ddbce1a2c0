//! One operation after the other: few rows stay in cache between them, and many are bound by memory.

use super::AddRmsNorm;
use crate::{add, rms_norm};
use alluvium_core::cpu::Cpu;
use alluvium_core::{Dims, Result, Tensor};

pub(super) fn forward(cpu: &Cpu, [x, r, w]: [&Tensor; 3], eps: f32, dims: &Dims) -> Result<AddRmsNorm> {
    let sum = add(x, r)?;
    let (y, _) = rms_norm::cpu::forward(cpu, &sum, w, eps, dims)?;
    Ok(AddRmsNorm { sum, y })
}
