//! The launches: tiles of 64 queries by 64 keys, or parts of 64 keys where there is one query.

use super::{AttentionArgs, CONTRACT, Grad, Mask, QueryBlock, cuda};
use crate::common::gpu::{MATH, ODD};
use crate::common::gpu::{to_u32, to_u32s};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Dims, Error, Result, Tensor};

const SIZES: &str = include_str!("sizes.wgsl");
const DOTS: &str = include_str!("dots.wgsl");
const SINGLE_SEQUENCE: &str = include_str!("single_sequence.wgsl");
const PACKED_SEQUENCES: &str = include_str!("packed_sequences.wgsl");
const QUADS: &str = include_str!("vec4.wgsl");
const SINGLES: &str = include_str!("scalar.wgsl");
const FORWARD: &str = include_str!("forward.wgsl");
const BACKWARD: &str = include_str!("backward.wgsl");
const MERGE_TEXT: &str = include_str!("merge_splits.wgsl");

/// Kernels with results in whole vec4s, and with results that begin anywhere.
type Pair = [Kernel; 2];

static PLAIN_FORWARD: Pair = [
    crate::common::gpu::kernel("attention", &[MATH, ODD, SIZES, SINGLE_SEQUENCE, QUADS, DOTS, FORWARD]),
    crate::common::gpu::kernel("attention, odd", &[MATH, ODD, SIZES, SINGLE_SEQUENCE, SINGLES, DOTS, FORWARD]),
];
static PACKED_FORWARD: Pair = [
    crate::common::gpu::kernel("packed attention", &[MATH, ODD, SIZES, PACKED_SEQUENCES, QUADS, DOTS, FORWARD]),
    crate::common::gpu::kernel("packed attention, odd", &[MATH, ODD, SIZES, PACKED_SEQUENCES, SINGLES, DOTS, FORWARD]),
];
static PLAIN_BACKWARD: Pair = [
    crate::common::gpu::kernel("attention's gradient", &[MATH, ODD, SIZES, SINGLE_SEQUENCE, QUADS, DOTS, BACKWARD]),
    crate::common::gpu::kernel(
        "attention's gradient, odd",
        &[MATH, ODD, SIZES, SINGLE_SEQUENCE, SINGLES, DOTS, BACKWARD],
    ),
];
static PACKED_BACKWARD: Pair = [
    crate::common::gpu::kernel(
        "packed attention's gradient",
        &[MATH, ODD, SIZES, PACKED_SEQUENCES, QUADS, DOTS, BACKWARD],
    ),
    crate::common::gpu::kernel(
        "packed attention's gradient, odd",
        &[MATH, ODD, SIZES, PACKED_SEQUENCES, SINGLES, DOTS, BACKWARD],
    ),
];
static MERGE_SPLITS: Pair = [
    crate::common::gpu::kernel("parts of attention", &[MATH, ODD, SIZES, QUADS, MERGE_TEXT]),
    crate::common::gpu::kernel("parts of attention, odd", &[MATH, ODD, SIZES, SINGLES, MERGE_TEXT]),
];
static DECODE: Kernel =
    crate::common::gpu::kernel("attention of one query", &[MATH, ODD, SIZES, include_str!("decode.wgsl")]);
static WITH_O: Kernel =
    crate::common::gpu::kernel("attention's results by gradients", &[ODD, SIZES, include_str!("with_o.wgsl")]);

/// Rows of a tile.
const SIDE: usize = 64;
/// The largest head_dim, in vec4s: each invocation holds this many vec4s of four rows.
const WIDEST: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    tokens: u32,
    positions: u32,
    heads: u32,
    shared_heads: u32,
    width: u32,
    scale: f32,
    count: u32,
}

/// The parameters that all launches share.
struct AttentionLaunch<'a> {
    gpu: &'a Gpu,
    batch: usize,
    dtype: DType,
    params: Params,
    /// Blocks of rows of packed sequences, and how many they are.
    blocks: Option<(Tensor, usize)>,
}

impl<'a> AttentionLaunch<'a> {
    fn new(gpu: &'a Gpu, dims: &Dims, scale: f32, dtype: DType, mask: &Mask) -> Result<Self> {
        let width = dims['D'];
        if width > WIDEST {
            let why = format!("D is {width}, but {} takes heads of at most {WIDEST}", gpu.name());
            return Err(Error::value(CONTRACT.op, why));
        }
        let [tokens, positions, heads, shared_heads, width] =
            to_u32s(['T', 'S', 'A', 'G', 'D'].map(|letter| dims[letter]))?;
        let params = Params { tokens, positions, heads, shared_heads, width, scale, count: 0 };
        let blocks = if mask.is_packed { Some(blocks(gpu, mask)?) } else { None };
        Ok(AttentionLaunch { gpu, batch: dims['B'], dtype, params, blocks })
    }

    /// Whether rows begin at whole vec4s.
    fn is_even(&self) -> bool {
        self.params.width.is_multiple_of(4)
    }

    fn which(&self, [even, odd]: &'static Pair) -> &'static Kernel {
        if self.is_even() { even } else { odd }
    }

    /// The table of blocks, which kernels of packed sequences read.
    fn table(&self) -> Option<&Tensor> {
        self.blocks.as_ref().map(|(table, _)| table)
    }

    /// The number of blocks of rows.
    fn count(&self, rows: usize) -> usize {
        self.blocks.as_ref().map_or(rows.div_ceil(SIDE), |(_, count)| *count)
    }

    /// Memory for rows of results: odd ones are f32 and rounded afterwards.
    fn rows(&self, like: &Tensor) -> Result<Tensor> {
        self.gpu.empty(like.shape(), if self.is_even() { self.dtype } else { DType::F32 })
    }

    fn launch(
        &self,
        (kernel, entry): (&'static Kernel, &'static str),
        constants: &[(&'static str, u32)],
        tensors: &[&Tensor],
        groups: Groups,
        params: Params,
    ) -> Result<()> {
        let odd = [("ODD", u32::from(!self.is_even()))];
        let constants: Vec<_> = odd.iter().chain(constants).copied().collect();
        let binds: Vec<Bind<'_>> = tensors.iter().map(|tensor| Bind::All(tensor)).collect();
        self.gpu.launch(&Launch {
            kernel,
            entry,
            constants: &constants,
            stored: &[("X", self.dtype)],
            binds: &binds,
            params: bytemuck::bytes_of(&params),
            groups,
        })
    }
}

/// Blocks of up to 64 rows of one sequence: the first row and the one past the last, then those of the sequence.
pub(super) fn blocks(gpu: &Gpu, mask: &Mask) -> Result<(Tensor, usize)> {
    let mut table = Vec::new();
    for QueryBlock { queries, sequence } in mask.blocks(SIDE) {
        table.extend(to_u32s([queries.start, queries.end, sequence.start, sequence.end])?);
    }
    Ok((gpu.table(&table)?, table.len() / 4))
}

/// The result, and `log Σ exp` of the scores of each head and query, `[B, A, T]`.
pub(super) fn forward(gpu: &Gpu, args: &AttentionArgs<'_>, mask: &Mask, dims: &Dims) -> Result<(Tensor, Tensor)> {
    let AttentionArgs { q, k, v, scale, .. } = *args;
    if cuda::takes(gpu, q.dtype(), dims) {
        return cuda::forward(gpu, [q, k, v], scale, mask, dims);
    }
    let plan = AttentionLaunch::new(gpu, dims, scale, q.dtype(), mask)?;
    let o = plan.rows(q)?;
    let lse = gpu.empty([dims['B'], dims['A'], dims['T']], DType::F32)?;
    if dims['T'] == 1 {
        decode(&plan, [q, k, v], [&o, &lse])?;
    } else {
        let mut tensors = vec![&o, &lse, q, k, v];
        let kernel = plan.which(if plan.blocks.is_some() { &PACKED_FORWARD } else { &PLAIN_FORWARD });
        tensors.extend(plan.table());
        let constants = [("COLS", dims['D'].div_ceil(SIDE) as u32), ("SEQUENCES_AT", 5)];
        let groups = Groups::Grid([plan.count(dims['T']), dims['A'], dims['B']]);
        plan.launch((kernel, "forward"), &constants, &tensors, groups, plan.params)?;
    }
    Ok((gpu.convert(&o, q.dtype())?, lse))
}

/// One query: parts of the keys side by side, then the parts together.
fn decode(plan: &AttentionLaunch<'_>, [q, k, v]: [&Tensor; 3], [o, lse]: [&Tensor; 2]) -> Result<()> {
    let Params { positions, heads, shared_heads, width, .. } = plan.params;
    let (heads, quads) = (heads as usize, width.div_ceil(4) as usize);
    let count = (positions as usize).div_ceil(SIDE);
    let parts = plan.gpu.empty([plan.batch * heads, count, 4 * quads], DType::F32)?;
    let sums = plan.gpu.empty([plan.batch * heads, count, 2], DType::F32)?;
    let each = heads / shared_heads as usize;
    let rows = each.next_power_of_two().min(8);
    let constants = [("ROWS", rows as u32), ("QUADS", quads.next_power_of_two() as u32)];
    let groups = Groups::Grid([count, shared_heads as usize * each.div_ceil(rows), plan.batch]);
    let params = Params { count: to_u32(count)?, ..plan.params };
    plan.launch((&DECODE, "decode"), &constants, &[&parts, &sums, q, k, v], groups, params)?;
    // `tokens` is the number of rows of heads here
    let params = Params { tokens: to_u32(plan.batch)?, ..params };
    let groups = Groups::Line(plan.batch * heads);
    plan.launch((plan.which(&MERGE_SPLITS), "merge_splits"), &[], &[o, lse, &parts, &sums], groups, params)
}

pub(super) fn backward(gpu: &Gpu, saved: &Grad, dy: &Tensor, need: [bool; 3]) -> Result<[Option<Tensor>; 3]> {
    let Grad { q, k, v, o, lse, mask, scale, dims } = saved;
    let plan = AttentionLaunch::new(gpu, dims, *scale, q.dtype(), mask)?;
    let with_o = gpu.empty(lse.shape(), DType::F32)?;
    let rows = lse.elements();
    let params = Params { count: to_u32(rows)?, ..plan.params };
    if need[0] || need[1] {
        plan.launch((&WITH_O, "with_o"), &[], &[&with_o, o, dy], Groups::Line(rows.div_ceil(64)), params)?;
    }
    if cuda::takes(gpu, q.dtype(), dims) {
        return cuda::backward(gpu, saved, dy, &with_o, need);
    }

    let gradient = |of: &Tensor, own: [&Tensor; 2], streamed: [&Tensor; 2], queries: bool, values: bool| {
        let to = plan.rows(of)?;
        let mut tensors = vec![&to, lse, &with_o, own[0], streamed[0], own[1], streamed[1]];
        let kernel = plan.which(if plan.blocks.is_some() { &PACKED_BACKWARD } else { &PLAIN_BACKWARD });
        tensors.extend(plan.table());
        let constants = [
            ("COLS", dims['D'].div_ceil(SIDE) as u32),
            ("SEQUENCES_AT", 7),
            ("OWN_QUERIES", u32::from(queries)),
            ("OF_VALUES", u32::from(values)),
        ];
        let groups = Groups::Grid([plan.count(of.shape()[1]), of.shape()[2], dims['B']]);
        plan.launch((kernel, "backward"), &constants, &tensors, groups, plan.params)?;
        gpu.convert(&to, of.dtype())
    };
    Ok([
        need[0].then(|| gradient(q, [q, dy], [k, v], true, false)).transpose()?,
        need[1].then(|| gradient(k, [k, v], [q, dy], false, false)).transpose()?,
        need[2].then(|| gradient(v, [k, v], [q, dy], false, true)).transpose()?,
    ])
}
