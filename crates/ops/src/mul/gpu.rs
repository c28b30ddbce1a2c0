//! The formula on a GPU.

use super::cpu::Mul;
use crate::common::gpu::map::{BINARY, Shaded};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("mul", &[BINARY, include_str!("kernel.wgsl")]);

impl Shaded for Mul {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
