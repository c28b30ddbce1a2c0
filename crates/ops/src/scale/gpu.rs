//! The formula on a GPU.

use super::cpu::Scale;
use crate::common::gpu::map::{Shaded, UNARY};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("scale", &[UNARY, include_str!("kernel.wgsl")]);

impl Shaded for Scale {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }

    fn number(self) -> f32 {
        self.factor
    }
}
