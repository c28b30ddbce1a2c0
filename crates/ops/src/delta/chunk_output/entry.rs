//! The entry of `chunk_output` in the list.

use super::{CONTRACT, ChunkOutputArgs, chunk_output, reference};
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "outputs from the states of chunks",
    results: &["o"],
    run: |t| {
        let (q, k, v_new, h, g_cum) = (&t["q"], &t["k"], &t["v_new"], &t["h"], &t["g_cum"]);
        Ok(vec![chunk_output(ChunkOutputArgs { q, k, v_new, h, g_cum, scale: scale(t) as f32 })?])
    },
    reference: |t| reference::forward(t, scale(t)),
    gradient: Gradient::Of(|t, dy| reference::gradient(t, scale(t), dy)),
    tolerance: Tolerance::F32_SUMS,
    fills: &[("q", Fill::UnitRows), ("k", Fill::UnitRows), ("g_cum", Fill::ChunkSums(-0.2, -0.001))],
    cases: &[
        Case::new("unequal heads", &[('B', 2), ('T', 7), ('N', 1), ('H', 2), ('G', 4), ('K', 5), ('V', 3)])
            .options(&[("scale", 0.7)]),
        Case::new("one more than a chunk", &[('B', 1), ('T', 65), ('N', 2), ('H', 1), ('G', 2), ('K', 17), ('V', 5)]),
        Case::new("strong decay", &[('B', 1), ('T', 63), ('N', 1), ('H', 1), ('G', 2), ('K', 5), ('V', 17)])
            .filled(&[("g_cum", Fill::ChunkSums(-3.0, 0.0))]),
        Case::new("a model's heads", &[('B', 1), ('T', 130), ('N', 3), ('H', 2), ('G', 4), ('K', 128), ('V', 128)])
            .options(&[("scale", 0.3)]),
    ],
    fixed: &['B', 'T', 'N', 'H', 'G'],
    largest: 70,
    bench: &[Case::new(
        "T 4096, 8 heads of 128",
        &[('B', 1), ('T', 4_096), ('N', 64), ('H', 8), ('G', 8), ('K', 128), ('V', 128)],
    )],
    cost: |d| {
        let (tokens, c, [k, v]) = (d['B'] * d['T'], d['T'].min(64), [d['K'], d['V']]);
        let states = d['B'] * d['N'] * d['G'] * k * v;
        let bytes = 4 * (2 * tokens * d['H'] * k + tokens * d['G'] * (2 * v + 1) + states);
        let flops = tokens * d['G'] * (2 * k * v + c * (k + v));
        Cost { bytes, flops, backward_bytes: 2 * bytes, backward_flops: 2 * flops }
    },
    ..Op::BASE
};

fn scale<T>(t: &Given<T>) -> f64 {
    t.option("scale").unwrap_or_else(|| (t.dims['K'] as f64).sqrt().recip())
}
