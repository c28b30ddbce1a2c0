//! The largest logit of each part of a row by a workgroup each, and then one workgroup a row; the choice stays on the GPU.

use super::Sampling;
use crate::common::gpu::MATH;
use crate::common::gpu::to_u32;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Dims, Result, Tensor};

static KERNEL: Kernel = crate::common::gpu::kernel("sample", &[MATH, include_str!("kernel.wgsl")]);

/// Tokens of a part, as the text has it.
const PART: usize = 2_048;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    words: u32,
    top_k: u32,
    temperature: f32,
    top_p: f32,
    least: f32,
}

pub(super) fn sample(gpu: &Gpu, logits: &Tensor, sampling: &Sampling, draws: &[f32], dims: &Dims) -> Result<Tensor> {
    let Sampling { temperature, top_k, top_p, min_p } = *sampling;
    let (rows, words) = (dims['B'], dims['V']);
    let ids = gpu.empty([rows], DType::U32)?;
    let draws = Tensor::from_slice(draws, [rows], &gpu.clone().into())?;
    // bit by bit: whether there is a draw at all, and which filters it has
    let wanted = [temperature > 0.0, top_k > 0 && top_k < words, top_p < 1.0, min_p > 0.0];
    let filters = wanted.iter().rev().fold(0, |bits, &set| 2 * bits + u32::from(set));
    let filters = if temperature > 0.0 { filters } else { 0 };
    let params = Params {
        rows: to_u32(rows)?,
        words: to_u32(words)?,
        top_k: to_u32(top_k.min(words))?,
        temperature,
        top_p,
        least: min_p.ln(),
    };
    let parts = rows * words.div_ceil(PART);
    let (tops, firsts) = (gpu.empty([parts], DType::F32)?, gpu.empty([parts], DType::U32)?);
    let [x, draw, id, top, first] = [logits, &draws, &ids, &tops, &firsts].map(Bind::All);
    let of_parts = [x.clone(), Bind::Unused, Bind::Unused, top.clone(), first.clone()];
    for (entry, binds, groups) in [("parts", of_parts, parts), ("choose", [x, draw, id, top, first], rows)] {
        gpu.launch(&Launch {
            kernel: &KERNEL,
            entry,
            constants: &[("FILTERS", filters), ("EVEN", u32::from(words.is_multiple_of(4)))],
            stored: &[("X", logits.dtype())],
            binds: &binds,
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(groups),
        })?;
    }
    Ok(ids)
}
