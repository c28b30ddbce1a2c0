//! One launch: a workgroup has a head of a token.

use super::{AttentionHeads, QkvHeads, QkvNormRopeArgs};
use crate::common::gpu::form::{QUADS, SINGLES};
use crate::common::gpu::{MATH, to_u32, to_u32s};
use crate::rope::gpu::{QUAD_ANGLES, SINGLE_ANGLES, form, frequencies};
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{Result, Tensor};

const TEXT: &str = include_str!("kernel.wgsl");
const QUAD_SIGMOID: &str = "fn sigmoid_of(x: Num) -> Num { return sigmoid4(x); }\n";
const SINGLE_SIGMOID: &str = "fn sigmoid_of(x: Num) -> Num { return sigmoid1(x); }\n";

static KERNELS: [Kernel; 2] = [
    crate::common::gpu::kernel("qkv_norm_rope", &[MATH, QUADS, QUAD_ANGLES, QUAD_SIGMOID, TEXT]).reducing(),
    crate::common::gpu::kernel("qkv_norm_rope, scalar", &[MATH, SINGLES, SINGLE_ANGLES, SINGLE_SIGMOID, TEXT])
        .reducing(),
];

/// Invocations of a workgroup: one for each quad of a head of 256 elements.
const WORKGROUP: usize = 64;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    count: u32,
    row: u32,
    queries: u32,
    kv: u32,
    width: u32,
    pairs: u32,
    step: u32,
    apart: u32,
    share: f32,
    eps: f32,
    magnitude: f32,
}

pub(super) fn forward(gpu: &Gpu, args: &QkvNormRopeArgs<'_>) -> Result<QkvHeads> {
    let &QkvNormRopeArgs { x, positions, norms, eps, heads, rope } = args;
    let AttentionHeads { queries, kv, dim, gated } = heads;
    let rows = x.shape()[0];
    let form = form(dim, x.dtype(), rope);
    let read = |x| gpu.convert(x, form.dtype());
    let x32 = read(x)?;
    let norms = norms.map(|[q, k]| Ok::<_, alluvium_core::Error>([read(q)?, read(k)?])).transpose()?;
    let [q, k, v] = [queries, kv, kv].map(|heads| gpu.empty([rows, heads, dim], form.dtype()));
    let (q, k, v) = (q?, k?, v?);
    let gate = gated.then(|| gpu.empty([rows, queries, dim], form.dtype())).transpose()?;
    let table = gpu.table(&frequencies(rope))?;
    let (width, pairs) = (dim / form.unit(), rope.dims / 2 / form.unit());
    let [step, apart] = rope.pairs.strides(pairs);
    let [row, a, g, width_u32, pairs, step, apart] =
        to_u32s([x.shape()[1] / form.unit(), queries, kv, width, pairs, step, apart])?;
    let groups = rows * (queries + 2 * kv);
    let params = Params {
        count: to_u32(groups)?,
        row,
        queries: a,
        kv: g,
        width: width_u32,
        pairs,
        step,
        apart,
        share: 1.0 / dim as f32,
        eps,
        magnitude: rope.magnitude(),
    };
    // where there are no norms or gates, the text does not touch their bindings
    let [q_norm, k_norm] = norms.as_ref().map_or([&x32, &x32], |norms| norms.each_ref());
    let mut binds =
        vec![Bind::All(&x32), Bind::All(positions), Bind::All(&table), Bind::All(q_norm), Bind::All(k_norm)];
    binds.extend([&q, &k, &v].map(Bind::All));
    binds.extend(gate.iter().map(Bind::All));
    gpu.launch(&Launch {
        kernel: form.choose(&KERNELS),
        entry: if gated { "gated" } else { "plain" },
        constants: &[("WG", WORKGROUP as u32), ("WIDTH", to_u32(width)?), ("NORM", u32::from(norms.is_some()))],
        stored: &form.stored(),
        binds: &binds,
        params: bytemuck::bytes_of(&params),
        groups: Groups::Line(groups),
    })?;
    let back = |x: &Tensor| gpu.convert(x, args.x.dtype());
    Ok(QkvHeads { q: back(&q)?, k: back(&k)?, v: back(&v)?, gate: gate.as_ref().map(back).transpose()? })
}
