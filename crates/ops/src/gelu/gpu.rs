//! The formula on a GPU.

use super::cpu::Gelu;
use crate::common::gpu::{
    MATH,
    map::{Shaded, UNARY},
};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("gelu", &[MATH, UNARY, include_str!("kernel.wgsl")]);

impl Shaded for Gelu {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
