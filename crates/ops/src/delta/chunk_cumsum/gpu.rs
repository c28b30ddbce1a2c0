//! A line of invocations a chunk, one a head.

use crate::delta::chunk::Layout;
use crate::delta::gpu::{Chunks, Way};
use alluvium_core::gpu::Gpu;
use alluvium_core::{Result, Tensor};

pub(super) fn sums(gpu: &Gpu, g: &Tensor, [tokens, groups]: [usize; 2], way: Way) -> Result<Tensor> {
    let layout = Layout { batch: g.elements() / tokens / groups, tokens, heads: groups, groups };
    Chunks::of(gpu, layout)?.running(g, way)?.reshape(g.shape())
}
