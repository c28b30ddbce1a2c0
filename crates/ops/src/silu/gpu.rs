//! The formula on a GPU.

use super::cpu::Silu;
use crate::common::gpu::{
    MATH,
    map::{Shaded, UNARY},
};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("silu", &[MATH, UNARY, include_str!("kernel.wgsl")]);

impl Shaded for Silu {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
