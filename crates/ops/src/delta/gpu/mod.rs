//! Chunks of the gated delta rule on a GPU: products of a chunk's matrices, and what happens between them.
//!
//! The stages and the whole rule are made of these. All values are f32; a matrix of tokens by tokens is stored like a
//! head of 64 channels, `[T, G, 64]`, with zeros above its diagonal.

mod product;
mod stages;

pub(crate) use product::{ChunkProduct, Factor, Keep, ProductMask, ProductSide, Size};
pub(crate) use stages::{Outputs, StateSeeds, States, WyProduct};

use crate::common::gpu::to_u32;
use crate::delta::chunk::HeadLayout;

use crate::common::gpu::MATH;
use crate::delta::chunk::{CHUNK, Write, pieces};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Error, Result, Tensor};
use std::ops::Range;

static GATES: Kernel = crate::common::gpu::kernel("chunk gates", &[MATH, include_str!("gates.wgsl")]);
static STATE: Kernel = crate::common::gpu::kernel("chunk state", &[include_str!("state.wgsl")]);
static SOLVE: Kernel = crate::common::gpu::kernel("chunk solve", &[include_str!("solve.wgsl")]);
static SQUARES: Kernel = crate::common::gpu::kernel("chunk squares", &[include_str!("squares.wgsl")]);
static ROWS: Kernel = crate::common::gpu::kernel("chunk rows", &[include_str!("rows.wgsl")]);
static SUMS: Kernel = crate::common::gpu::kernel("chunk sums", &[include_str!("sums.wgsl")]);
static STEPS: Kernel = crate::common::gpu::kernel("chunk steps", &[include_str!("steps.wgsl")]);
static LAST: Kernel = crate::common::gpu::kernel("chunk last", &[include_str!("last.wgsl")]).reducing();

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ChunkParams {
    chunks: u32,
    v_heads: u32,
    size: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Passing {
    sequences: u32,
    v_heads: u32,
    left_share: u32,
    right_share: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct RowParams {
    rows: u32,
    width: u32,
    v_heads: u32,
    share: u32,
}

/// The chunks of all sequences, on the device.
#[derive(Clone, Debug)]
pub(crate) struct Chunks {
    gpu: Gpu,
    /// First token and length of each chunk.
    chunks: Tensor,
    /// First token, length, first chunk and number of chunks of each sequence.
    sequences: Tensor,
    pub(crate) tokens: usize,
    /// Tokens of a chunk; the last of a sequence may have fewer.
    length: usize,
    /// Key heads.
    pub(crate) k_heads: usize,
    /// Value heads.
    pub(crate) v_heads: usize,
}

/// The decay factors of the chunks.
#[derive(Clone, Debug)]
pub(crate) struct ChunkGates {
    /// `e^{g_{j+1} + … + g_i}`, `[T, G, 64]`.
    pub(crate) gamma: Tensor,
    /// From the chunk's start, to its end, β, β from the start: `[T, G, 4]`.
    pub(crate) factors: Tensor,
}

/// The kind of the log decays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decay {
    /// Of each token.
    Each,
    /// Summed from the chunk's start.
    Summed,
}

/// From which end chunks are walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the first token.
    Forward,
    /// From the last.
    Back,
}

/// Elements of a piece of the left side as `state.wgsl` lays it out.
const PIECE: usize = 16 * 65;

/// The scan over chunks of `state.wgsl`.
pub(crate) struct StateScan<'a> {
    pub(crate) way: Direction,
    /// Meets the state: `[T, heads, K]`.
    pub(crate) left: &'a Tensor,
    /// Enters it: `[T, heads, K]`.
    pub(crate) right: &'a Tensor,
    /// `[T, G, V]`.
    pub(crate) x: &'a Tensor,
    /// One state a chunk, `[chunks, G, V, K]`: written, and backwards read before.
    pub(crate) states: &'a Tensor,
    /// The state before the first step, and after the last: `[N, G, V, K]`.
    pub(crate) last: &'a Tensor,
}

impl Chunks {
    /// The chunks of whole rows of tokens.
    pub(crate) fn of(gpu: &Gpu, layout: HeadLayout) -> Result<Self> {
        let HeadLayout { batch, tokens, k_heads, v_heads } = layout;
        let rows: Vec<Range<usize>> = (0..batch).map(|row| row * tokens..(row + 1) * tokens).collect();
        Self::new(gpu, &rows, [k_heads, v_heads], CHUNK)
    }

    /// The chunks of `length` tokens, at most 64, of sequences with these numbers of key and value heads.
    pub(crate) fn new(
        gpu: &Gpu,
        sequences: &[Range<usize>],
        [k_heads, v_heads]: [usize; 2],
        length: usize,
    ) -> Result<Self> {
        let (mut chunks, mut rows) = (Vec::new(), Vec::new());
        for tokens in sequences {
            let before = chunks.len() / 4;
            for chunk in pieces(tokens.clone(), length) {
                chunks.extend([chunk.start as u32, chunk.len() as u32, 0, 0]);
            }
            let count = chunks.len() / 4 - before;
            rows.extend([tokens.start as u32, tokens.len() as u32, before as u32, count as u32]);
        }
        Ok(Chunks {
            gpu: gpu.clone(),
            chunks: gpu.table(&chunks)?.reshape([chunks.len() / 4, 4])?,
            sequences: gpu.table(&rows)?.reshape([rows.len() / 4, 4])?,
            tokens: sequences.last().map_or(0, |tokens| tokens.end),
            length,
            k_heads,
            v_heads,
        })
    }

    /// First token and length of each chunk, and two zeros.
    pub(crate) fn chunk_table(&self) -> &Tensor {
        &self.chunks
    }

    /// First token, length, first chunk and number of chunks of each sequence.
    pub(crate) fn sequence_table(&self) -> &Tensor {
        &self.sequences
    }

    /// The number of chunks.
    pub(crate) fn count(&self) -> usize {
        self.chunks.shape()[0]
    }

    /// The number of sequences.
    pub(crate) fn sequences(&self) -> usize {
        self.sequences.shape()[0]
    }

    /// Value heads that read a key head.
    fn share(&self) -> usize {
        self.v_heads / self.k_heads
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Memory for `width` values of each token and value head.
    pub(crate) fn empty(&self, width: usize) -> Result<Tensor> {
        self.gpu.empty([self.tokens, self.v_heads, width], DType::F32)
    }

    /// Memory for a state of each chunk and value head.
    pub(crate) fn empty_states(&self, values: usize, keys: usize) -> Result<Tensor> {
        self.gpu.empty([self.count(), self.v_heads, values, keys], DType::F32)
    }

    /// `e^` of the log decays' sums, and β beside them where it is given.
    pub(crate) fn gates(&self, g: &Tensor, decay: Decay, beta: Option<&Tensor>) -> Result<ChunkGates> {
        let gates = ChunkGates { gamma: self.empty(CHUNK)?, factors: self.empty(4)? };
        let constants = [("SUMS", u32::from(decay == Decay::Summed)), ("BETA", u32::from(beta.is_some()))];
        let binds = [&self.chunks, g, beta.unwrap_or(g), &gates.gamma, &gates.factors];
        self.launch((&GATES, "main"), &constants, &binds, 0, self.v_heads)?;
        Ok(gates)
    }

    /// `(I + L)⁻¹` of what `l` holds below the diagonal.
    pub(crate) fn solve(&self, l: &Tensor) -> Result<Tensor> {
        let a = self.empty(CHUNK)?;
        self.launch((&SOLVE, "main"), &[], &[&self.chunks, l, &a], 0, self.v_heads)?;
        Ok(a)
    }

    /// `x ⊙ y` on and below the diagonal, or only below.
    pub(crate) fn gated(&self, x: &Tensor, y: &Tensor, keep: Keep) -> Result<Tensor> {
        let z = self.empty(CHUNK)?;
        let constants = [("STRICT", u32::from(keep == Keep::Below)), ("WEIGHT", 0)];
        self.launch((&SQUARES, "gated"), &constants, &[&self.chunks, x, y, &z], 0, self.v_heads)?;
        Ok(z)
    }

    /// The row sums of `E = x ⊙ y` below the diagonal, and the row sums less the column sums of `E`, or of `diag(β) E`.
    pub(crate) fn row_sums(&self, x: &Tensor, y: &Tensor, gates: &ChunkGates, weight: Weight) -> Result<[Tensor; 2]> {
        let [rows, differences] = [self.empty(1)?, self.empty(1)?];
        let constants = [("STRICT", 0), ("WEIGHT", u32::from(weight == Weight::Beta))];
        let binds = [&self.chunks, x, y, &differences, &gates.factors, &rows];
        self.launch((&SQUARES, "sums"), &constants, &binds, 0, self.v_heads)?;
        Ok([rows, differences])
    }

    /// `x · y` of each token's head; then `x` is multiplied with its factor. `y` may be of key heads.
    pub(crate) fn dots(&self, x: &Tensor, y: &Tensor, gates: &ChunkGates, scale: Factor) -> Result<Tensor> {
        let dots = self.empty(1)?;
        let width = x.elements() / (self.tokens * self.v_heads);
        let share = self.v_heads / (y.elements() / (self.tokens * width));
        let rows = self.tokens * self.v_heads;
        let params = RowParams {
            rows: to_u32(rows)?,
            width: to_u32(width)?,
            v_heads: to_u32(self.v_heads)?,
            share: to_u32(share)?,
        };
        self.gpu.launch(&Launch {
            kernel: &ROWS,
            entry: "dot_and_scale",
            constants: &[("SCALE", scale as u32)],
            stored: &[],
            binds: &[x, y, &gates.factors, &dots].map(Bind::All),
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(rows.div_ceil(32)),
        })?;
        Ok(dots)
    }

    /// The sums over the value heads that read each key head.
    pub(crate) fn sum_over_v_heads(&self, x: Tensor) -> Result<Tensor> {
        if self.share() == 1 {
            return Ok(x);
        }
        let width = x.elements() / (self.tokens * self.v_heads);
        let y = self.gpu.empty([self.tokens, self.k_heads, width], DType::F32)?;
        let rows = to_u32(self.tokens * self.k_heads)?;
        let params =
            RowParams { rows, width: to_u32(width)?, v_heads: to_u32(self.v_heads)?, share: to_u32(self.share())? };
        self.gpu.launch(&Launch {
            kernel: &ROWS,
            entry: "sum_over_v_heads",
            constants: &[("SCALE", 4)],
            stored: &[],
            // the entry reads bindings 1 and 3
            binds: &[Bind::Unused, Bind::All(&x), Bind::Unused, Bind::All(&y)],
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(y.elements().div_ceil(256)),
        })?;
        Ok(y)
    }

    /// Running sums of `[T, G]` within chunks.
    pub(crate) fn running(&self, x: &Tensor, way: Direction) -> Result<Tensor> {
        let y = self.empty(1)?;
        let constants = [("BACK", u32::from(way == Direction::Back))];
        self.launch((&SUMS, "running"), &constants, &[&self.chunks, x, &y], 0, self.v_heads.div_ceil(64))?;
        Ok(y)
    }

    /// The gradient of each step of the log decay; `dg` is set, or added to.
    pub(crate) fn step_gradients(
        &self,
        of: &Exponents<'_>,
        gates: &ChunkGates,
        dg: &Tensor,
        write: Write,
    ) -> Result<()> {
        let Exponents { x, y, weight, from_start, ends } = *of;
        let constants = [
            ("WEIGHT", u32::from(weight == Weight::Beta)),
            ("ENDS", u32::from(ends.is_some())),
            ("ADD", u32::from(write == Write::Add)),
        ];
        let [to_end, whole] = ends.unwrap_or([from_start; 2]);
        let binds = [&self.chunks, x, y, &gates.factors, from_start, to_end, whole, dg];
        self.launch((&STEPS, "main"), &constants, &binds, 0, self.v_heads)
    }

    /// `e^{g_last} Σ states ⊙ gradients` of each chunk and value head: the gradient of the decay over the whole chunk.
    pub(crate) fn whole(&self, states: [&Tensor; 2], gates: &ChunkGates) -> Result<Tensor> {
        let y = self.gpu.empty([self.count(), self.v_heads], DType::F32)?;
        let size = states[0].elements() / (self.count() * self.v_heads);
        let binds = [&self.chunks, states[0], &y, states[0], states[1], &gates.factors];
        self.launch((&LAST, "main"), &[("WG", 256), ("KEPT", 1)], &binds, size, self.v_heads)?;
        Ok(y)
    }

    /// `dg −= x` but at each chunk's last token `dg += e^{g_last} Σ states ⊙ gradients + Σ x`, `x` of the tokens
    /// before.
    pub(crate) fn whole_decay(&self, dg: &Tensor, x: &Tensor, states: [&Tensor; 2], gates: &ChunkGates) -> Result<()> {
        let size = states[0].elements() / (self.count() * self.v_heads);
        let binds = [&self.chunks, x, dg, states[0], states[1], &gates.factors];
        self.launch((&LAST, "main"), &[("WG", 256), ("KEPT", 0)], &binds, size, self.v_heads)
    }

    /// Takes the state through the chunks; returns `y`, `[T, G, V]`.
    pub(crate) fn pass(&self, passage: &StateScan<'_>, gates: &ChunkGates) -> Result<Tensor> {
        let StateScan { way, left, right, x, states, last } = *passage;
        let (values, keys) = (states.shape()[2], states.shape()[3]);
        let y = self.empty(values)?;
        // a tile and what its tokens write, or a piece of what they meet, fit in 16 KiB for the widths of models
        let tile = match keys {
            0..=128 => 16,
            129..=256 => 8,
            _ => 4,
        };
        if 4 * (tile * keys + (CHUNK * tile).max(PIECE)) > self.gpu.limits().shared {
            let why = format!(
                "a state with K = {keys} does not fit in the memory that a workgroup of {} shares",
                self.gpu.name()
            );
            return Err(Error::value("chunk_state", why));
        }
        let share = |side: &Tensor| (self.v_heads * self.tokens * keys / side.elements()) as u32;
        let params = Passing {
            sequences: to_u32(self.sequences())?,
            v_heads: to_u32(self.v_heads)?,
            left_share: share(left),
            right_share: share(right),
        };
        self.gpu.launch(&Launch {
            kernel: &STATE,
            entry: "main",
            constants: &[
                ("K", keys as u32),
                ("V", values as u32),
                ("TILE", tile as u32),
                ("LENGTH", self.length as u32),
                ("BACK", u32::from(way == Direction::Back)),
            ],
            stored: &[],
            binds: &[&self.sequences, left, right, x, &gates.factors, &y, states, last].map(Bind::All),
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(self.sequences() * self.v_heads * values.div_ceil(tile)),
        })?;
        Ok(y)
    }

    fn launch(
        &self,
        (kernel, entry): (&'static Kernel, &'static str),
        constants: &[(&'static str, u32)],
        binds: &[&Tensor],
        size: usize,
        lines: usize,
    ) -> Result<()> {
        let params = ChunkParams { chunks: to_u32(self.count())?, v_heads: to_u32(self.v_heads)?, size: to_u32(size)? };
        let binds: Vec<Bind<'_>> = binds.iter().map(|tensor| Bind::All(tensor)).collect();
        self.gpu.launch(&Launch {
            kernel,
            entry,
            constants,
            stored: &[],
            binds: &binds,
            params: bytemuck::bytes_of(&params),
            groups: Groups::Line(self.count() * lines),
        })
    }
}

/// Gradients of the exponents of a chunk's decays.
#[derive(Clone, Copy)]
pub(crate) struct Exponents<'a> {
    /// Of the decays from token to token `x ⊙ y`, `[T, G, 64]`, with rows that are weighted.
    pub(crate) x: &'a Tensor,
    pub(crate) y: &'a Tensor,
    pub(crate) weight: Weight,
    /// Of the decays from the chunk's start, `[T, G]`.
    pub(crate) from_start: &'a Tensor,
    /// Of the decays to the chunk's end, and of that over all of it, `[chunks, G]`.
    pub(crate) ends: Option<[&'a Tensor; 2]>,
}

/// The weights of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// β of the row's token.
    Beta,
    /// Nothing.
    One,
}
