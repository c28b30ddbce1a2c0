//! The formula on a GPU.

use super::cpu::Log;
use crate::common::gpu::map::{Shaded, UNARY};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("log", &[UNARY, include_str!("kernel.wgsl")]);

impl Shaded for Log {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
