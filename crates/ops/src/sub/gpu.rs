//! The formula on a GPU.

use super::cpu::Sub;
use crate::common::gpu::map::{BINARY, Shaded};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("sub", &[BINARY, include_str!("kernel.wgsl")]);

impl Shaded for Sub {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
