//! The entry of `causal_conv1d` in the list.

use super::{Activation, CONTRACT, CausalConv1dArgs, causal_conv1d, reference};
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Tolerance};
use alluvium_core::{Result, Tensor};

fn activation<T>(t: &Given<T>) -> Activation {
    if t.flag("silu") { Activation::Silu } else { Activation::None }
}

fn run(t: &mut Given<Tensor>) -> Result<Vec<Tensor>> {
    let convolved = causal_conv1d(CausalConv1dArgs {
        x: &t["x"],
        w: &t["w"],
        initial_state: t.get("initial_state"),
        cu_seqlens: t.get("cu_seqlens"),
        activation: activation(t),
    })?;
    Ok([Some(convolved.y), convolved.final_state].into_iter().flatten().collect())
}

const SILU: &[(&str, f64)] = &[("silu", 1.0)];
const ALONE: &[&str] = &["initial_state", "cu_seqlens"];
const STATE: &[&str] = &["cu_seqlens"];
const PACKED: &[&str] = &["initial_state"];

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "causal depthwise convolution",
    results: &["y", "final_state"],
    run,
    reference: |t| reference::forward(t, activation(t)),
    gradient: Gradient::Of(|t, dy| reference::gradient(t, activation(t), dy)),
    // the sum behind dw is as long as the sequence
    tolerance: Tolerance::F32_SUMS,
    fills: &[("cu_seqlens", Fill::Offsets('T'))],
    cases: &[
        Case::new("one token, one channel, one tap", &[('B', 1), ('T', 1), ('C', 1), ('K', 1)]).without(ALONE),
        Case::new("one tap has no state", &[('B', 2), ('T', 65), ('C', 17), ('K', 1)]).without(ALONE).options(SILU),
        Case::new("the usual taps", &[('B', 2), ('T', 65), ('C', 17), ('K', 4)]).without(ALONE).options(SILU),
        Case::new("no activation", &[('B', 1), ('T', 63), ('C', 65), ('K', 4)]).without(ALONE),
        Case::new("goes on from a state", &[('B', 3), ('T', 6), ('C', 63), ('K', 4), ('N', 3)])
            .without(STATE)
            .options(SILU),
        Case::new("decode", &[('B', 2), ('T', 1), ('C', 70), ('K', 4), ('N', 2)]).without(STATE).options(SILU),
        Case::new("more taps than tokens", &[('B', 2), ('T', 3), ('C', 9), ('K', 9), ('N', 2)])
            .without(STATE)
            .options(SILU),
        Case::new("two taps", &[('B', 1), ('T', 7), ('C', 33), ('K', 2), ('N', 1)]).without(STATE),
        Case::new("three taps, packed", &[('B', 1), ('T', 40), ('C', 5), ('K', 3), ('N', 7)])
            .without(PACKED)
            .options(SILU),
        Case::new("packed, each from a state", &[('B', 1), ('T', 30), ('C', 19), ('K', 4), ('N', 9)]).options(SILU),
        Case::new("packed, shorter than the taps", &[('B', 1), ('T', 9), ('C', 7), ('K', 6), ('N', 5)]).options(SILU),
        Case::new("many parts and spans", &[('B', 2), ('T', 301), ('C', 1_033), ('K', 4), ('N', 2)])
            .without(STATE)
            .options(SILU),
        Case::new("long, packed", &[('B', 1), ('T', 2_500), ('C', 24), ('K', 4), ('N', 11)]).options(SILU),
        Case::new("long, with many taps", &[('B', 1), ('T', 700), ('C', 16), ('K', 75), ('N', 1)]).without(STATE),
    ],
    fixed: &['B', 'K', 'N'],
    largest: 70,
    bench: &[
        Case::new("decode", &[('B', 1), ('T', 1), ('C', 8_192), ('K', 4), ('N', 1)]).without(STATE).options(SILU),
        Case::new("prefill 4k", &[('B', 1), ('T', 4_096), ('C', 8_192), ('K', 4)]).without(ALONE).options(SILU),
        Case::new("prefill 16k", &[('B', 1), ('T', 16_384), ('C', 8_192), ('K', 4)]).without(ALONE).options(SILU),
        Case::new("prefill 8k", &[('B', 1), ('T', 8_192), ('C', 8_192), ('K', 4)]).without(ALONE).options(SILU),
        Case::new("prefill 4k, no activation", &[('B', 1), ('T', 4_096), ('C', 8_192), ('K', 4)]).without(ALONE),
        Case::new("prefill 8k, no activation", &[('B', 1), ('T', 8_192), ('C', 8_192), ('K', 4)]).without(ALONE),
    ],
    cost: |d| {
        let (n, k) = (d['B'] * d['T'] * d['C'], d['K']);
        Cost { bytes: 8 * n, flops: (2 * k + 4) * n, backward_bytes: 12 * n, backward_flops: (6 * k + 8) * n }
    },
    ..Op::BASE
};
