//! The formula on a GPU.

use super::cpu::Exp;
use crate::common::gpu::{
    MATH,
    map::{Shaded, UNARY},
};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("exp", &[MATH, UNARY, include_str!("kernel.wgsl")]);

impl Shaded for Exp {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
