//! The entry of `gated_delta_rule` in the list.

use super::{CONTRACT, ChunkStates, GatedDeltaArgs, gated_delta_rule, reference};
use crate::delta::chunk::CHUNK;
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Tolerance};
use alluvium_core::{Result, Tensor};

/// Decay that empties the state within a token, and decay that hardly moves it.
const STRONG: (&str, Fill) = ("g", Fill::Uniform(-30.0, 0.0));
/// Decay so strong that the gradient of its logarithm, which has it as a factor, is below the rounding of its terms'
/// sum.
const STEEP: (&str, Fill) = ("g", Fill::Uniform(-16.0, -12.0));
const MIXED: (&str, Fill) = ("g", Fill::Uniform(-20.0, 0.0));
const NONE: (&str, Fill) = ("g", Fill::Uniform(0.0, 0.0));
/// Tokens that write nothing or all, nearly.
const EXTREME: (&str, Fill) = ("beta", Fill::Uniform(0.0, 1e-3));
const FULL: (&str, Fill) = ("beta", Fill::Uniform(0.999, 1.0));

const START: &str = "initial_state";
const PACKED: &str = "cu_seqlens";

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "the gated delta rule over sequences, in chunks",
    results: &["o", "final_state"],
    run,
    reference: |t| reference::forward(t, scale(t)),
    gradient: Gradient::Of(|t, dy| reference::gradient(t, scale(t), dy)),
    tolerance: Tolerance::MATRIX_UNITS,
    fills: &[
        ("q", Fill::UnitRows),
        ("k", Fill::UnitRows),
        ("g", Fill::Uniform(-0.2, -0.001)),
        ("beta", Fill::Uniform(0.05, 0.95)),
        ("cu_seqlens", Fill::Offsets('T')),
    ],
    cases: &[
        Case::new("two tokens", &[('B', 1), ('T', 2), ('H', 1), ('G', 1), ('K', 2), ('V', 3), ('N', 1)])
            .without(&[PACKED]),
        Case::new("one token", &[('B', 2), ('T', 1), ('H', 1), ('G', 2), ('K', 5), ('V', 3), ('N', 2)])
            .without(&[PACKED]),
        Case::new(
            "one token without a start",
            &[('B', 2), ('T', 1), ('H', 2), ('G', 2), ('K', 5), ('V', 17), ('N', 2)],
        )
        .without(&[START, PACKED])
        .zeros(&["d g"]),
        Case::new("unequal heads, odd widths", &[('B', 2), ('T', 9), ('H', 2), ('G', 6), ('K', 5), ('V', 3), ('N', 2)])
            .without(&[PACKED]),
        Case::new("packed", &[('B', 1), ('T', 11), ('H', 1), ('G', 2), ('K', 3), ('V', 5), ('N', 3)]),
        Case::new("one less than a chunk", &[('B', 1), ('T', 63), ('H', 1), ('G', 1), ('K', 4), ('V', 5), ('N', 1)])
            .without(&[PACKED]),
        Case::new("a chunk", &[('B', 1), ('T', 64), ('H', 1), ('G', 1), ('K', 5), ('V', 4), ('N', 1)])
            .without(&[START, PACKED]),
        Case::new("one more than a chunk", &[('B', 1), ('T', 65), ('H', 1), ('G', 1), ('K', 5), ('V', 4), ('N', 1)])
            .without(&[PACKED]),
        Case::new(
            "two states run through again",
            &[('B', 1), ('T', 66), ('H', 1), ('G', 1), ('K', 3), ('V', 2), ('N', 1)],
        )
        .without(&[PACKED])
        .options(&[("recompute", 1.0), ("scale", 0.3)]),
        Case::new(
            "states run through again",
            &[('B', 1), ('T', 130), ('H', 1), ('G', 2), ('K', 17), ('V', 33), ('N', 1)],
        )
        .without(&[PACKED])
        .options(&[("recompute", 1.0), ("scale", 0.3)]),
        Case::new("packed over chunks", &[('B', 1), ('T', 257), ('H', 2), ('G', 4), ('K', 16), ('V', 17), ('N', 4)]),
        Case::new(
            "packed, run through again",
            &[('B', 1), ('T', 257), ('H', 2), ('G', 2), ('K', 17), ('V', 16), ('N', 3)],
        )
        .options(&[("recompute", 1.0)]),
        Case::new("strong decay", &[('B', 1), ('T', 130), ('H', 1), ('G', 2), ('K', 16), ('V', 16), ('N', 1)])
            .without(&[PACKED])
            .filled(&[STRONG]),
        Case::new(
            "log decays from -16 to -12",
            &[('B', 1), ('T', 140), ('H', 1), ('G', 2), ('K', 16), ('V', 16), ('N', 1)],
        )
        .without(&[PACKED])
        .filled(&[STEEP])
        .each(&["d g"]),
        Case::new("steep, without a start", &[('B', 1), ('T', 9), ('H', 1), ('G', 1), ('K', 8), ('V', 8), ('N', 1)])
            .without(&[START, PACKED])
            .filled(&[STEEP])
            .each(&["d g"]),
        Case::new("steep, packed", &[('B', 1), ('T', 150), ('H', 1), ('G', 2), ('K', 16), ('V', 8), ('N', 4)])
            .filled(&[STEEP])
            .each(&["d g"])
            .options(&[("recompute", 1.0)]),
        Case::new(
            "decay of every strength",
            &[('B', 1), ('T', 140), ('H', 1), ('G', 2), ('K', 16), ('V', 16), ('N', 1)],
        )
        .without(&[PACKED])
        .filled(&[MIXED])
        .each(&["d g"]),
        Case::new("no decay", &[('B', 1), ('T', 130), ('H', 1), ('G', 2), ('K', 64), ('V', 16), ('N', 1)])
            .without(&[PACKED])
            .filled(&[NONE]),
        Case::new("beta near 0", &[('B', 1), ('T', 130), ('H', 1), ('G', 1), ('K', 16), ('V', 16), ('N', 1)])
            .without(&[PACKED])
            .filled(&[EXTREME]),
        Case::new("beta near 1", &[('B', 1), ('T', 130), ('H', 1), ('G', 1), ('K', 32), ('V', 16), ('N', 1)])
            .without(&[PACKED])
            .filled(&[FULL]),
        Case::new("a model's heads", &[('B', 2), ('T', 130), ('H', 2), ('G', 4), ('K', 128), ('V', 128), ('N', 2)])
            .without(&[PACKED]),
        Case::new(
            "a model's heads, packed",
            &[('B', 1), ('T', 257), ('H', 1), ('G', 2), ('K', 128), ('V', 128), ('N', 4)],
        ),
        Case::new(
            "a model's heads, run through again",
            &[('B', 1), ('T', 150), ('H', 1), ('G', 1), ('K', 128), ('V', 128), ('N', 1)],
        )
        .without(&[START, PACKED])
        .filled(&[MIXED])
        .options(&[("recompute", 1.0)]),
        Case::new("the widest keys", &[('B', 1), ('T', 70), ('H', 1), ('G', 1), ('K', 256), ('V', 256), ('N', 1)])
            .without(&[PACKED]),
    ],
    fixed: &['B', 'N'],
    largest: 90,
    bench: &[
        Case::new(
            "T 1024, 8 heads of 128",
            &[('B', 1), ('T', 1_024), ('H', 8), ('G', 8), ('K', 128), ('V', 128), ('N', 1)],
        )
        .without(&[START, PACKED]),
        Case::new(
            "T 8192, 16 heads of 128",
            &[('B', 1), ('T', 8_192), ('H', 16), ('G', 16), ('K', 128), ('V', 128), ('N', 1)],
        )
        .without(&[START, PACKED]),
        Case::new(
            "T 4096, 16 and 32 heads of 128",
            &[('B', 1), ('T', 4_096), ('H', 16), ('G', 32), ('K', 128), ('V', 128), ('N', 1)],
        )
        .without(&[START, PACKED]),
        Case::new(
            "T 8192, 16 and 32 heads of 128",
            &[('B', 1), ('T', 8_192), ('H', 16), ('G', 32), ('K', 128), ('V', 128), ('N', 1)],
        )
        .without(&[START, PACKED]),
        Case::new(
            "8 times T 8192, 16 and 32 heads of 128",
            &[('B', 8), ('T', 8_192), ('H', 16), ('G', 32), ('K', 128), ('V', 128), ('N', 8)],
        )
        .without(&[START, PACKED]),
        Case::new(
            "8 packed sequences, 8 heads of 128",
            &[('B', 1), ('T', 2_048), ('H', 8), ('G', 8), ('K', 128), ('V', 128), ('N', 8)],
        )
        .without(&[START]),
    ],
    cost: |d| {
        let (keys, values) = (d['B'] * d['T'] * d['H'] * d['K'], d['B'] * d['T'] * d['G'] * d['V']);
        let (tokens, states) = (d['B'] * d['T'] * d['G'], d['N'] * d['G'] * d['K'] * d['V']);
        let (k, v) = (d['K'], d['V']);
        // products of tokens within a chunk: on average half a chunk each
        let c = d['T'].min(CHUNK);
        Cost {
            bytes: 4 * (2 * keys + 2 * values + 2 * tokens + 2 * states),
            flops: tokens * (6 * k * v + 4 * c * k + 4 * c * v + c * c / 3),
            backward_bytes: 4 * (4 * keys + 3 * values + 4 * tokens + 3 * states),
            backward_flops: tokens * (14 * k * v + 10 * c * k + 10 * c * v + 4 * c * c),
        }
    },
    ..Op::BASE
};

fn scale<T>(t: &Given<T>) -> f64 {
    t.option("scale").unwrap_or_else(|| (t.dims['K'] as f64).sqrt().recip())
}

fn run(t: &mut Given<Tensor>) -> Result<Vec<Tensor>> {
    let delta = gated_delta_rule(GatedDeltaArgs {
        q: &t["q"],
        k: &t["k"],
        v: &t["v"],
        g: &t["g"],
        beta: &t["beta"],
        initial_state: t.get(START),
        cu_seqlens: t.get(PACKED),
        scale: scale(t) as f32,
        states: if t.flag("recompute") { ChunkStates::Recompute } else { ChunkStates::Keep },
    })?;
    Ok(vec![delta.o, delta.final_state])
}
