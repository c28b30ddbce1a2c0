//! The entry of `attention` in the list.

use super::{AttentionArgs, CONTRACT, attention, reference};
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Tolerance};

/// Optional arguments that most cases leave out.
const PACKED: &[&str] = &["cu_seqlens"];

fn scale<T>(t: &Given<T>) -> f32 {
    t.option("scale").map_or((t.dims['D'] as f32).sqrt().recip(), |scale| scale as f32)
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "causal softmax attention with grouped queries; no score is kept",
    results: &["o"],
    run: |t| {
        let (q, k, v) = (&t["q"], &t["k"], &t["v"]);
        Ok(vec![attention(AttentionArgs { q, k, v, cu_seqlens: t.get("cu_seqlens"), scale: scale(t) })?])
    },
    reference: |t| vec![reference::forward(t, f64::from(scale(t)))],
    gradient: Gradient::Of(|t, dy| {
        let [dq, dk, dv] = reference::gradient(t, f64::from(scale(t)), &dy[0]);
        vec![Some(dq), Some(dk), Some(dv), None]
    }),
    tolerance: Tolerance::MATRIX_UNITS,
    fills: &[("cu_seqlens", Fill::Offsets('T'))],
    cases: &[
        Case::new("one token sees one more", &[('B', 2), ('T', 1), ('A', 3), ('D', 5), ('S', 2), ('G', 1)])
            .without(PACKED),
        Case::new("a few tokens", &[('B', 1), ('T', 5), ('A', 2), ('D', 3), ('S', 5), ('G', 2)]).without(PACKED),
        Case::new("unequal heads", &[('B', 2), ('T', 17), ('A', 6), ('D', 7), ('S', 17), ('G', 2)]).without(PACKED),
        Case::new("one block", &[('B', 1), ('T', 64), ('A', 1), ('D', 16), ('S', 64), ('G', 1)]).without(PACKED),
        Case::new("one more than a block", &[('B', 2), ('T', 65), ('A', 2), ('D', 17), ('S', 65), ('G', 1)])
            .without(PACKED),
        Case::new("several blocks", &[('B', 1), ('T', 201), ('A', 4), ('D', 64), ('S', 201), ('G', 2)]).without(PACKED),
        Case::new("goes on from a past", &[('B', 1), ('T', 6), ('A', 2), ('D', 8), ('S', 9), ('G', 1)]).without(PACKED),
        Case::new("a long past", &[('B', 2), ('T', 70), ('A', 2), ('D', 33), ('S', 263), ('G', 2)]).without(PACKED),
        Case::new("decode", &[('B', 3), ('T', 1), ('A', 4), ('D', 9), ('S', 7), ('G', 2)]).without(PACKED),
        Case::new("decode by quads", &[('B', 2), ('T', 1), ('A', 4), ('D', 12), ('S', 65), ('G', 2)]).without(PACKED),
        Case::new("decode with a long past", &[('B', 1), ('T', 1), ('A', 10), ('D', 65), ('S', 777), ('G', 2)])
            .without(PACKED),
        Case::new("sharp weights", &[('B', 1), ('T', 63), ('A', 2), ('D', 12), ('S', 63), ('G', 1)])
            .without(PACKED)
            .options(&[("scale", 2.0)]),
        Case::new("packed", &[('B', 1), ('T', 13), ('A', 2), ('D', 4), ('S', 13), ('G', 1), ('N', 4)]),
        Case::new("packed, of odd width", &[('B', 1), ('T', 13), ('A', 2), ('D', 5), ('S', 13), ('G', 1), ('N', 4)]),
        Case::new("packed over blocks", &[('B', 1), ('T', 300), ('A', 3), ('D', 20), ('S', 300), ('G', 3), ('N', 5)]),
        Case::new(
            "packed over blocks, heads of 64",
            &[('B', 1), ('T', 300), ('A', 4), ('D', 64), ('S', 300), ('G', 2), ('N', 5)],
        ),
        Case::new("a long past, heads of 128", &[('B', 2), ('T', 70), ('A', 4), ('D', 128), ('S', 263), ('G', 2)])
            .without(PACKED),
        Case::new("heads of 192", &[('B', 1), ('T', 65), ('A', 1), ('D', 192), ('S', 70), ('G', 1)]).without(PACKED),
        Case::new("wide heads", &[('B', 1), ('T', 66), ('A', 2), ('D', 256), ('S', 66), ('G', 1)]).without(PACKED),
    ],
    fixed: &['B', 'T', 'S', 'N'],
    largest: 9,
    bench: &[
        Case::new("2k tokens, 8 heads of 64", &[('B', 1), ('T', 2_048), ('A', 8), ('D', 64), ('S', 2_048), ('G', 8)])
            .without(PACKED),
        Case::new(
            "8k tokens, 16 heads of 128",
            &[('B', 1), ('T', 8_192), ('A', 16), ('D', 128), ('S', 8_192), ('G', 4)],
        )
        .without(PACKED),
        Case::new("8k tokens, 8 heads of 256", &[('B', 1), ('T', 8_192), ('A', 8), ('D', 256), ('S', 8_192), ('G', 2)])
            .without(PACKED),
        Case::new("decode over 8k", &[('B', 1), ('T', 1), ('A', 16), ('D', 256), ('S', 8_192), ('G', 2)])
            .without(PACKED),
    ],
    cost: |d| {
        let (queries, keys) = (d['B'] * d['T'] * d['A'] * d['D'], d['B'] * d['S'] * d['G'] * d['D']);
        // half of a square of scores, and the whole of what came before it
        let scores = d['B'] * d['A'] * (d['T'] * (d['T'] + 1) / 2 + d['T'] * (d['S'].max(d['T']) - d['T']));
        Cost {
            bytes: 8 * (queries + keys),
            flops: 4 * scores * d['D'],
            backward_bytes: 16 * (queries + keys),
            backward_flops: 10 * scores * d['D'],
        }
    },
    ..Op::BASE
};
