//! The formula on a GPU.

use super::cpu::Sigmoid;
use crate::common::gpu::{
    MATH,
    map::{Shaded, UNARY},
};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("sigmoid", &[MATH, UNARY, include_str!("kernel.wgsl")]);

impl Shaded for Sigmoid {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
