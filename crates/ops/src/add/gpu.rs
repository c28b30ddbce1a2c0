//! The formula on a GPU.

use super::cpu::Add;
use crate::common::gpu::map::{BINARY, Shaded};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("add", &[BINARY, include_str!("kernel.wgsl")]);

impl Shaded for Add {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
