//! The formula on a GPU.

use super::cpu::GeluApprox;
use crate::common::gpu::{
    MATH,
    map::{Shaded, UNARY},
};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("gelu_approx", &[MATH, UNARY, include_str!("kernel.wgsl")]);

impl Shaded for GeluApprox {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
