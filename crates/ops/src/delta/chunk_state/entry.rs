//! The entry of `chunk_state` in the list.

use super::{CONTRACT, chunk_state, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};

const START: &[&str] = &["initial_state"];

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "states at the starts of chunks",
    results: &["h", "v_new", "final_state"],
    run: |t| {
        let state = chunk_state(&t["k"], &t["w"], &t["u"], &t["g_cum"], t.get("initial_state"))?;
        Ok(vec![state.h, state.v_new, state.final_state])
    },
    reference: reference::forward,
    gradient: Gradient::Of(reference::gradient),
    tolerance: Tolerance::F32_SUMS,
    fills: &[("k", Fill::UnitRows), ("w", Fill::Normal(0.05)), ("g_cum", Fill::ChunkSums(-0.2, -0.001))],
    cases: &[
        Case::new("unequal heads", &[('B', 2), ('T', 7), ('H', 2), ('G', 4), ('K', 5), ('V', 3)]),
        Case::new("one more than a chunk", &[('B', 1), ('T', 65), ('H', 1), ('G', 2), ('K', 17), ('V', 5)])
            .without(START),
        Case::new("strong decay", &[('B', 1), ('T', 130), ('H', 1), ('G', 1), ('K', 5), ('V', 7)])
            .filled(&[("g_cum", Fill::ChunkSums(-3.0, 0.0))]),
        Case::new("a model's heads", &[('B', 1), ('T', 130), ('H', 2), ('G', 4), ('K', 128), ('V', 128)]),
    ],
    fixed: &['B', 'H', 'G'],
    largest: 90,
    bench: &[Case::new(
        "T 4096, 8 heads of 128",
        &[('B', 1), ('T', 4_096), ('H', 8), ('G', 8), ('K', 128), ('V', 128)],
    )
    .without(START)],
    cost: |d| {
        let (tokens, [k, v]) = (d['B'] * d['T'], [d['K'], d['V']]);
        let states = d['B'] * d['T'].div_ceil(64) * d['G'] * k * v;
        let bytes = 4 * (tokens * d['H'] * k + tokens * d['G'] * (k + 2 * v + 1) + states);
        let flops = tokens * d['G'] * 4 * k * v;
        Cost { bytes, flops, backward_bytes: 2 * bytes, backward_flops: 2 * flops }
    },
    ..Op::BASE
};
