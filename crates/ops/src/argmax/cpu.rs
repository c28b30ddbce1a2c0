//! Threads over rows.

use crate::common::reduce::largest;
use alluvium_core::cpu::Cpu;
use alluvium_core::{Dims, Result, Tensor};

pub(super) fn forward(cpu: &Cpu, x: &Tensor, dims: &Dims) -> Result<Tensor> {
    cpu.wrap(largest(cpu, &cpu.read(x)?, dims['D'])?, dims.leading())
}
