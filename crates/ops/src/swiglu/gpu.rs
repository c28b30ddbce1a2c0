//! The formula on a GPU.

use super::cpu::Swiglu;
use crate::common::gpu::{
    MATH,
    map::{BINARY, Shaded},
};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = crate::common::gpu::kernel("swiglu", &[MATH, BINARY, include_str!("kernel.wgsl")]);

impl Shaded for Swiglu {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
