//! The entry of `chunk_kkt` in the list.

use super::{CONTRACT, chunk_kkt, reference};
use crate::delta::chunk::CHUNK;
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "gated products of a chunk's keys",
    results: &["l"],
    run: |t| Ok(vec![chunk_kkt(&t["k"], &t["beta"], &t["g_cum"])?]),
    reference: reference::forward,
    gradient: Gradient::Of(reference::gradient),
    tolerance: Tolerance::F32_SUMS,
    fills: &[("k", Fill::UnitRows), ("beta", Fill::Uniform(0.05, 0.95)), ("g_cum", Fill::ChunkSums(-0.2, -0.001))],
    cases: &[
        Case::new("unequal heads", &[('B', 2), ('T', 5), ('H', 2), ('G', 6), ('K', 3)]),
        Case::new("one more than a chunk", &[('B', 1), ('T', 65), ('H', 1), ('G', 2), ('K', 17)]),
        Case::new("strong decay", &[('B', 1), ('T', 63), ('H', 1), ('G', 2), ('K', 5)])
            .filled(&[("g_cum", Fill::ChunkSums(-30.0, 0.0))]),
        Case::new("a model's heads", &[('B', 1), ('T', 130), ('H', 2), ('G', 4), ('K', 128)]),
    ],
    fixed: &['B', 'H', 'G'],
    largest: 90,
    bench: &[Case::new("T 4096, 8 heads of 128", &[('B', 1), ('T', 4_096), ('H', 8), ('G', 8), ('K', 128)])],
    cost: |d| {
        let (keys, gates) = (d['B'] * d['T'] * d['H'] * d['K'], d['B'] * d['T'] * d['G']);
        let c = d['T'].min(CHUNK);
        let bytes = 4 * (keys + gates * (2 + CHUNK));
        Cost {
            bytes,
            flops: keys * c,
            backward_bytes: bytes + 4 * (keys + 2 * gates),
            backward_flops: 2 * gates * c * d['K'],
        }
    },
    ..Op::BASE
};
