//! The formula on a GPU.

use super::cpu::Softplus;
use crate::common::gpu::{
    MATH,
    map::{Shaded, UNARY},
};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("softplus", &[MATH, UNARY, include_str!("kernel.wgsl")]);

impl Shaded for Softplus {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
