//! A line of invocations a chunk, one a head.

use crate::delta::chunk::HeadLayout;
use crate::delta::gpu::{Chunks, Direction};
use alluvium_core::gpu::Gpu;
use alluvium_core::{Result, Tensor};

pub(super) fn sums(gpu: &Gpu, g: &Tensor, [tokens, v_heads]: [usize; 2], way: Direction) -> Result<Tensor> {
    let layout = HeadLayout { batch: g.elements() / tokens / v_heads, tokens, k_heads: v_heads, v_heads };
    Chunks::of(gpu, layout)?.running(g, way)?.reshape(g.shape())
}
