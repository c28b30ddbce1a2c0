//! Attention on NVIDIA's matrix units: bf16 products with f32 sums, for heads of 64, 128, 192 or 256 channels.
//!
//! Tiles are those of the portable kernels, 64 queries by 64 keys, so packed sequences share their tables. The gradients
//! take two launches, one with blocks of keys and one with blocks of queries: each block sums what is its own, so that
//! nothing is added atomically and the same inputs give the same bits.

use super::gpu::blocks;
use super::{Grad, Mask};
use crate::common::gpu::{MATRIX, NATIVE, to_u32};
use alluvium_core::gpu::{CudaArgument as Arg, CudaKernel, CudaLaunch, Gpu};
use alluvium_core::{DType, Dims, Result, Tensor};

const BLOCKS: &str = include_str!("blocks.cuh");

// SAFETY: `forward` gives the arguments of the declaration, with as many blocks as queries and heads need.
static FORWARD: CudaKernel =
    unsafe { CudaKernel::new("attention_forward", &[NATIVE, MATRIX, BLOCKS, include_str!("forward.cu")]) };
// SAFETY: `backward` gives the arguments of the declaration, with as many blocks as rows and heads need.
static GRADIENT: CudaKernel =
    unsafe { CudaKernel::new("attention_gradient", &[NATIVE, MATRIX, BLOCKS, include_str!("gradient.cu")]) };

/// Rows of a tile.
const SIDE: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    tokens: u32,
    positions: u32,
    heads: u32,
    shared_heads: u32,
    scale: f32,
    is_packed: u32,
}

/// Whether the kernels here compute these arguments. One query is read faster by the kernel of decoding; GPUs of games
/// have shared memory for heads of 128 channels, not of 256.
pub(super) fn takes(gpu: &Gpu, dtype: DType, dims: &Dims) -> bool {
    let width = dims['D'];
    let has_kernel = dtype == DType::BF16 && width.is_multiple_of(64) && width <= 256 && dims['T'] > 1;
    has_kernel && of_gradient(width) <= gpu.cuda_shared_memory() && dims['B'] * dims['A'] <= u16::MAX as usize
}

/// Bytes of shared memory of the gradient's kernel, the larger one: four tiles, two squares, two values of each query.
fn of_gradient(width: usize) -> usize {
    shared(width, 4, 2) + 8 * SIDE
}

/// Bytes of tiles of rows, and of squares.
fn shared(width: usize, tiles: usize, squares: usize) -> usize {
    2 * SIDE * (tiles * width + squares * SIDE)
}

/// The texts of all variants, by name.
pub(super) fn sources() -> impl Iterator<Item = (String, String)> {
    let widths = [64, 128, 192, 256];
    let forward = widths.map(|width| (&FORWARD, vec![("WIDTH", width)]));
    let gradient = widths.map(|width| [0, 1].map(|keys| (&GRADIENT, vec![("WIDTH", width), ("OF_KEYS", keys)])));
    forward.into_iter().chain(gradient.into_iter().flatten()).map(|(kernel, constants)| {
        let values: String = constants.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        (format!("{}{values}", kernel.name), kernel.source(&constants))
    })
}

/// What the launches share.
struct Plan<'a> {
    dims: &'a Dims,
    params: Params,
    /// Blocks of rows of packed sequences, and how many they are.
    blocks: Option<(Tensor, usize)>,
}

impl<'a> Plan<'a> {
    fn new(gpu: &Gpu, dims: &'a Dims, scale: f32, mask: &Mask) -> Result<Self> {
        let params = Params {
            tokens: to_u32(dims['T'])?,
            positions: to_u32(dims['S'])?,
            heads: to_u32(dims['A'])?,
            shared_heads: to_u32(dims['G'])?,
            scale,
            is_packed: u32::from(mask.is_packed),
        };
        let blocks = if mask.is_packed { Some(blocks(gpu, mask)?) } else { None };
        Ok(Plan { dims, params, blocks })
    }

    fn table(&self) -> Arg<'_> {
        self.blocks.as_ref().map_or(Arg::Null, |(table, _)| Arg::Read(table))
    }

    fn params(&self) -> Arg<'_> {
        Arg::Params(bytemuck::bytes_of(&self.params))
    }

    /// Blocks of this many rows, for each head of each row of the batch.
    fn grid(&self, rows: usize, heads: usize) -> [usize; 2] {
        let count = self.blocks.as_ref().map_or(rows.div_ceil(SIDE), |(_, count)| *count);
        [count, self.dims['B'] * heads]
    }

    fn width(&self) -> Result<(&'static str, u32)> {
        Ok(("WIDTH", to_u32(self.dims['D'])?))
    }
}

/// The result, and `log Σ exp` of the scores of each head and query, `[B, A, T]`.
pub(super) fn forward(
    gpu: &Gpu,
    [q, k, v]: [&Tensor; 3],
    scale: f32,
    mask: &Mask,
    dims: &Dims,
) -> Result<(Tensor, Tensor)> {
    let plan = Plan::new(gpu, dims, scale, mask)?;
    let [q, k, v] = [gpu.at_16_bytes(q)?, gpu.at_16_bytes(k)?, gpu.at_16_bytes(v)?];
    let o = gpu.empty(q.shape(), DType::BF16)?;
    let lse = gpu.empty([dims['B'], dims['A'], dims['T']], DType::F32)?;
    gpu.launch_cuda(&CudaLaunch {
        kernel: &FORWARD,
        constants: &[plan.width()?],
        arguments: &[
            Arg::Read(&q),
            Arg::Read(&k),
            Arg::Read(&v),
            Arg::Write(&o),
            Arg::Write(&lse),
            plan.table(),
            plan.params(),
        ],
        grid: plan.grid(dims['T'], dims['A']),
        threads: 128,
        shared: to_u32(shared(dims['D'], 3, 0))?,
    })?;
    Ok((o, lse))
}

/// The gradients that are needed; `with_o` is `do · o` of each head and query.
pub(super) fn backward(
    gpu: &Gpu,
    saved: &Grad,
    dy: &Tensor,
    with_o: &Tensor,
    need: [bool; 3],
) -> Result<[Option<Tensor>; 3]> {
    let Grad { q, k, v, lse, mask, scale, dims, .. } = saved;
    let plan = Plan::new(gpu, dims, *scale, mask)?;
    let [q, k, v] = [gpu.at_16_bytes(q)?, gpu.at_16_bytes(k)?, gpu.at_16_bytes(v)?];
    let dy = gpu.at_16_bytes(&gpu.convert(dy, DType::BF16)?)?;
    let launch = |is_of_keys: bool, [dx, dvalues]: [Arg<'_>; 2]| {
        let (rows, heads) = if is_of_keys { (dims['S'], dims['G']) } else { (dims['T'], dims['A']) };
        let inputs = [&q, &k, &v, &dy, lse, with_o].map(Arg::Read);
        let arguments: Vec<Arg<'_>> = inputs.into_iter().chain([dx, dvalues, plan.table(), plan.params()]).collect();
        gpu.launch_cuda(&CudaLaunch {
            kernel: &GRADIENT,
            constants: &[plan.width()?, ("OF_KEYS", u32::from(is_of_keys))],
            arguments: &arguments,
            grid: plan.grid(rows, heads),
            threads: 256,
            shared: to_u32(of_gradient(dims['D']))?,
        })
    };
    let [mut dq, mut dk, mut dv] = [const { None }; 3];
    if need[0] {
        let to = gpu.empty(q.shape(), DType::BF16)?;
        launch(false, [Arg::Write(&to), Arg::Null])?;
        dq = Some(to);
    }
    if need[1] || need[2] {
        let to = [gpu.empty(k.shape(), DType::BF16)?, gpu.empty(v.shape(), DType::BF16)?];
        launch(true, [Arg::Write(&to[0]), Arg::Write(&to[1])])?;
        let [keys, values] = to;
        (dk, dv) = (need[1].then_some(keys), need[2].then_some(values));
    }
    Ok([dq, dk, dv])
}
