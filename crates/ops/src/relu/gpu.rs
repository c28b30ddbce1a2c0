//! The formula on a GPU.

use super::cpu::Relu;
use crate::common::gpu::{
    MATH,
    map::{Shaded, UNARY},
};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("relu", &[MATH, UNARY, include_str!("kernel.wgsl")]);

impl Shaded for Relu {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
