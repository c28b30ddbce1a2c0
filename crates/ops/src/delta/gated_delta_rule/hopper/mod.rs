//! The gated delta rule on Hopper's matrix units: bf16 products with f32 sums, gates and states.
//!
//! | text | what it does |
//! |---|---|
//! | `prepare.cu` | what a chunk is before any state is known, for all chunks at once |
//! | `pass.cu` | the chunks of each sequence, one after the other: outputs and states |
//! | `reverse.cu` | the same backwards: gradients of the states |
//! | `inside.cu` | all other gradients, for all chunks at once |
//! | `chain.cuh`, `ptx.cuh` | what the two in the middle share; what all ask of the GPU |
//!
//! Heads have 128 channels. Errors are those of products of bf16 factors: about 3e-3 of the results' norm.

use super::{GatedDeltaOutput, Grad};
use crate::common::gpu::{NATIVE, to_u32};
use crate::delta::chunk::CHUNK;
use crate::delta::gpu::Chunks;
use alluvium_core::gpu::{CudaArgument as Arg, CudaKernel, CudaLaunch, Gpu};
use alluvium_core::{DType, Result, Tensor};

const PTX: &str = include_str!("ptx.cuh");
const CHAIN: &str = include_str!("chain.cuh");

// SAFETY: `Prepared::new` gives the arguments of the declaration, with as many chunks and heads as the grid has blocks.
static PREPARE: CudaKernel = unsafe { CudaKernel::new("delta_prepare", &[NATIVE, PTX, include_str!("prepare.cu")]) };
// SAFETY: `Prepared::pass` gives the arguments of the declaration, with as many sequences and heads as the grid has
// clusters.
static PASS: CudaKernel = unsafe { CudaKernel::new("delta_pass", &[NATIVE, PTX, CHAIN, include_str!("pass.cu")]) };
// SAFETY: as for `PASS`, by `Prepared::reverse`.
static REVERSE: CudaKernel =
    unsafe { CudaKernel::new("delta_reverse", &[NATIVE, PTX, CHAIN, include_str!("reverse.cu")]) };
// SAFETY: `backward` gives the arguments of the declaration, with as many chunks and heads as the grid has blocks.
static INSIDE: CudaKernel = unsafe { CudaKernel::new("delta_inside", &[NATIVE, PTX, include_str!("inside.cu")]) };

/// Channels of a head.
const CHANNELS: usize = 128;
/// Numbers of an image of 64 × 64.
const TILE: usize = 64 * 64;
/// f32 numbers that a chunk has of each value head: from the start, to the end, β, sums of log decays, the decay.
const FACTORS: usize = 260;
/// Chunks that are fetched ahead.
const STAGES: u32 = 3;
/// Bytes of `Shared` in each text; in the passes without and with states that are stored.
const PREPARE_SHARED: u32 = 74_768;
const PASS_SHARED: [u32; 2] = [195_584, 211_968];
const INSIDE_SHARED: u32 = 224_320;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Sizes {
    k_heads: u32,
    v_heads: u32,
    scale: f32,
}

/// The texts of all variants, by name: tests give them to NVIDIA's compiler, which needs no GPU.
pub(crate) fn native_sources() -> impl Iterator<Item = (String, String)> {
    let passes = [(&PASS, 0), (&PASS, 1), (&REVERSE, 1)];
    let passes = passes.map(|(kernel, keep)| (kernel, vec![("STAGES", STAGES), ("KEEP", keep)]));
    let others = [(&PREPARE, Vec::new()), (&INSIDE, Vec::new())];
    let all = passes.into_iter().chain(others);
    all.map(|(kernel, constants)| {
        let values: String = constants.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        (format!("{}{values}", kernel.name), kernel.source(&constants))
    })
}

/// The arguments as the copy engine reads them, and what the chunks are before any state is known.
struct Prepared<'a> {
    gpu: &'a Gpu,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Option<Tensor>,
    chunks: Chunks,
    sizes: Sizes,
    inverse: Tensor,
    scores: Tensor,
    factors: Tensor,
}

/// Whether the kernels here compute these arguments.
pub(super) fn takes(gpu: &Gpu, args: &Grad) -> bool {
    let channels = [&args.q, &args.v].map(|x| x.shape().last());
    gpu.is_hopper() && args.q.dtype() == DType::BF16 && channels == [CHANNELS; 2]
}

impl<'a> Prepared<'a> {
    fn new(gpu: &'a Gpu, args: &Grad) -> Result<Self> {
        let [q, k, v] = [gpu.at_16_bytes(&args.q)?, gpu.at_16_bytes(&args.k)?, gpu.at_16_bytes(&args.v)?];
        let [g, beta] = [gpu.at_16_bytes(&args.g)?, gpu.at_16_bytes(&args.beta)?];
        let start = args.initial_state.as_ref().map(|state| gpu.at_16_bytes(state)).transpose()?;
        let chunks = Chunks::new(gpu, &args.sequences, [q.shape()[2], v.shape()[2]], CHUNK)?;
        let (k_heads, v_heads) = (chunks.k_heads, chunks.v_heads);
        let sizes = Sizes { k_heads: to_u32(k_heads)?, v_heads: to_u32(v_heads)?, scale: args.scale };
        let squares = chunks.count() * v_heads;
        let inverse = gpu.empty([squares, TILE], DType::BF16)?;
        let scores = gpu.empty([squares, TILE], DType::BF16)?;
        let factors = gpu.empty([squares, FACTORS], DType::F32)?;
        gpu.launch_cuda(&CudaLaunch {
            kernel: &PREPARE,
            constants: &[],
            arguments: &[
                Arg::ReadBoxes(&q, k_heads * CHANNELS),
                Arg::ReadBoxes(&k, k_heads * CHANNELS),
                Arg::Read(&g),
                Arg::Read(&beta),
                Arg::Read(chunks.chunk_table()),
                Arg::Write(&inverse),
                Arg::Write(&scores),
                Arg::Write(&factors),
                Arg::Params(bytemuck::bytes_of(&sizes)),
            ],
            grid: [chunks.count() * k_heads, 1],
            threads: 128,
            shared: PREPARE_SHARED,
        })?;
        Ok(Prepared { gpu, q, k, v, start, chunks, sizes, inverse, scores, factors })
    }

    /// Elements of a row of keys, and of values.
    fn widths(&self) -> [usize; 2] {
        [self.chunks.k_heads * CHANNELS, self.chunks.v_heads * CHANNELS]
    }

    /// Memory for the states of the sequences.
    fn states(&self) -> Result<Tensor> {
        self.gpu.empty([self.chunks.sequences(), self.chunks.v_heads, CHANNELS, CHANNELS], DType::F32)
    }

    /// Memory for a state of each chunk, as images of shared memory.
    fn images(&self) -> Result<Tensor> {
        self.gpu.empty([self.chunks.count() * self.chunks.v_heads, 4 * TILE], DType::BF16)
    }

    /// A pass through the chunks of every sequence.
    fn launch(&self, kernel: &'static CudaKernel, is_kept: bool, arguments: &[Arg<'_>]) -> Result<()> {
        self.gpu.launch_cuda(&CudaLaunch {
            kernel,
            constants: &[("STAGES", STAGES), ("KEEP", u32::from(is_kept))],
            arguments,
            grid: [2 * self.chunks.sequences() * self.chunks.v_heads, 1],
            threads: 160,
            shared: PASS_SHARED[usize::from(is_kept)],
        })
    }

    /// The outputs, the last states, and the states at the starts of the chunks if they are kept.
    fn pass(&self, is_kept: bool) -> Result<(GatedDeltaOutput, Option<Tensor>)> {
        let [keys, values] = self.widths();
        let (o, final_state) = (self.gpu.empty(self.v.shape(), DType::BF16)?, self.states()?);
        let kept = if is_kept { Some(self.images()?) } else { None };
        let arguments = [
            Arg::ReadBoxes(&self.q, keys),
            Arg::ReadBoxes(&self.k, keys),
            Arg::ReadBoxes(&self.v, values),
            Arg::WriteBoxes(&o, values),
            Arg::Read(&self.inverse),
            Arg::Read(&self.scores),
            Arg::Read(&self.factors),
            Arg::Read(self.chunks.sequence_table()),
            self.start.as_ref().map_or(Arg::Null, Arg::Read),
            Arg::Write(&final_state),
            Arg::Write(&o),
            kept.as_ref().map_or(Arg::Null, Arg::Write),
            Arg::Params(bytemuck::bytes_of(&self.sizes)),
        ];
        self.launch(&PASS, is_kept, &arguments)?;
        Ok((GatedDeltaOutput { o, final_state }, kept))
    }

    /// Y, the gradients of the states that leave the chunks, and those of the first states.
    fn reverse(&self, dy: &Tensor, last: Option<&Tensor>) -> Result<[Tensor; 3]> {
        let [keys, values] = self.widths();
        let (y, gradients, first) = (self.gpu.empty(self.v.shape(), DType::BF16)?, self.images()?, self.states()?);
        let arguments = [
            Arg::ReadBoxes(&self.q, keys),
            Arg::ReadBoxes(&self.k, keys),
            Arg::ReadBoxes(dy, values),
            Arg::WriteBoxes(&y, values),
            Arg::Read(&self.inverse),
            Arg::Read(&self.scores),
            Arg::Read(&self.factors),
            Arg::Read(self.chunks.sequence_table()),
            last.map_or(Arg::Null, Arg::Read),
            Arg::Write(&first),
            Arg::Write(&y),
            Arg::Write(&gradients),
            Arg::Params(bytemuck::bytes_of(&self.sizes)),
        ];
        self.launch(&REVERSE, true, &arguments)?;
        Ok([y, gradients, first])
    }
}

/// The outputs and the last states. No states are kept for the backward pass: they are 32 KiB a chunk and head, and the
/// pass that makes them again is a sixth of it.
pub(super) fn forward(gpu: &Gpu, args: &Grad) -> Result<GatedDeltaOutput> {
    Ok(Prepared::new(gpu, args)?.pass(false)?.0)
}

/// The gradients that are needed, given that of the outputs.
pub(super) fn backward(
    gpu: &Gpu,
    args: &Grad,
    dy: &Tensor,
    last: Option<&Tensor>,
    need: [bool; 6],
) -> Result<[Option<Tensor>; 6]> {
    let prepared = Prepared::new(gpu, args)?;
    let (_, states) = prepared.pass(true)?;
    let dy = gpu.at_16_bytes(&gpu.convert(dy, DType::BF16)?)?;
    let last = last.map(|last| gpu.at_16_bytes(last)).transpose()?;
    let [y, gradients, first] = prepared.reverse(&dy, last.as_ref())?;
    let [keys, values] = prepared.widths();
    let Prepared { q, k, v, chunks, sizes, inverse, factors, .. } = &prepared;
    let [dq, dk, dv] =
        [gpu.empty(q.shape(), DType::BF16)?, gpu.empty(k.shape(), DType::BF16)?, gpu.empty(v.shape(), DType::BF16)?];
    let [dg, dbeta] = [gpu.empty(args.g.shape(), DType::F32)?, gpu.empty(args.beta.shape(), DType::F32)?];
    gpu.launch_cuda(&CudaLaunch {
        kernel: &INSIDE,
        constants: &[],
        arguments: &[
            Arg::ReadBoxes(q, keys),
            Arg::ReadBoxes(k, keys),
            Arg::ReadBoxes(v, values),
            Arg::ReadBoxes(&dy, values),
            Arg::ReadBoxes(&y, values),
            Arg::Read(inverse),
            Arg::Read(factors),
            states.as_ref().map_or(Arg::Null, Arg::Read),
            Arg::Read(&gradients),
            Arg::Read(chunks.chunk_table()),
            Arg::Write(&dq),
            Arg::Write(&dk),
            Arg::Write(&dv),
            Arg::Write(&dg),
            Arg::Write(&dbeta),
            Arg::Params(bytemuck::bytes_of(sizes)),
        ],
        grid: [chunks.count() * chunks.k_heads, 1],
        threads: 256,
        shared: INSIDE_SHARED,
    })?;
    let start = args.initial_state.is_some().then_some(first);
    let mut gradients = [Some(dq), Some(dk), Some(dv), Some(dg), Some(dbeta), start];
    for (gradient, _) in gradients.iter_mut().zip(need).filter(|(_, needed)| !needed) {
        *gradient = None;
    }
    Ok(gradients)
}
