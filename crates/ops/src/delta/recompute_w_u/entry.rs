//! The entry of `recompute_w_u` in the list.

use super::{CONTRACT, recompute_w_u, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "the WY representation of a chunk",
    results: &["w", "u"],
    run: |t| {
        let wu = recompute_w_u(&t["k"], &t["v"], &t["beta"], &t["g_cum"], &t["a"])?;
        Ok(vec![wu.w, wu.u])
    },
    reference: reference::forward,
    gradient: Gradient::Of(reference::gradient),
    tolerance: Tolerance::F32_SUMS,
    fills: &[
        ("k", Fill::UnitRows),
        ("beta", Fill::Uniform(0.05, 0.95)),
        ("g_cum", Fill::ChunkSums(-0.2, -0.001)),
        ("a", Fill::UnitLower(0.1)),
    ],
    cases: &[
        Case::new("one number", &[('B', 1), ('T', 1), ('H', 1), ('G', 1), ('K', 2), ('V', 1)]),
        Case::new("unequal heads", &[('B', 2), ('T', 9), ('H', 2), ('G', 6), ('K', 5), ('V', 3)]),
        Case::new("strong decay", &[('B', 1), ('T', 63), ('H', 1), ('G', 2), ('K', 5), ('V', 17)])
            .filled(&[("g_cum", Fill::ChunkSums(-3.0, 0.0))]),
        Case::new("heads of 64, strong decay", &[('B', 2), ('T', 65), ('H', 1), ('G', 2), ('K', 64), ('V', 64)])
            .filled(&[("g_cum", Fill::ChunkSums(-3.0, 0.0))]),
        Case::new("a model's heads", &[('B', 1), ('T', 130), ('H', 2), ('G', 4), ('K', 128), ('V', 128)]),
    ],
    fixed: &['B', 'H', 'G'],
    largest: 70,
    bench: &[
        Case::new("T 4096, 8 heads of 128", &[('B', 1), ('T', 4_096), ('H', 8), ('G', 8), ('K', 128), ('V', 128)]),
        Case::new(
            "T 8192, 16 and 32 heads of 128",
            &[('B', 1), ('T', 8_192), ('H', 16), ('G', 32), ('K', 128), ('V', 128)],
        ),
    ],
    cost: |d| {
        let (tokens, c) = (d['B'] * d['T'], d['T'].min(64));
        let (keys, rows) = (tokens * d['H'] * d['K'], tokens * d['G']);
        let bytes = 4 * (keys + rows * (d['K'] + 2 * d['V'] + 2 + 64));
        let flops = rows * c * (d['K'] + d['V']);
        Cost { bytes, flops, backward_bytes: 2 * bytes, backward_flops: 2 * flops }
    },
    ..Op::BASE
};
