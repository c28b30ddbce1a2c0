//! The formula on a GPU.

use super::cpu::Exp;
use crate::common::gpu::{
    MATH,
    map::{Shaded, UNARY},
};
use alluvium_core::gpu::Kernel;

static KERNEL: Kernel = Kernel::new("exp", &[MATH, UNARY, include_str!("kernel.wgsl")]);

impl Shaded for Exp {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }
}
