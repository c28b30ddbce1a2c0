//! The entry of `gated_delta_net_step` in the list.

use super::reference::{self, Settings};
use super::{CONTRACT, GatedDeltaNetStep, GatedDeltaNetStepArgs, HeadLayout, WHY, gated_delta_net_step};
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "one token of a Gated DeltaNet layer between its projections",
    results: &["y", "final_conv_state", "final_state"],
    run: |t| {
        let (state, with) = (t.take("state")?, settings(t));
        let GatedDeltaNetStep { y, conv_state, state } = gated_delta_net_step(GatedDeltaNetStepArgs {
            x: &t["x"],
            conv_state: &t["conv_state"],
            filter: &t["filter"],
            a_log: &t["a_log"],
            dt_bias: &t["dt_bias"],
            norm: &t["norm"],
            state,
            layout: with.layout,
            l2_eps: with.l2_eps as f32,
            norm_eps: with.norm_eps as f32,
            beta_scale: with.beta_scale as f32,
            scale: with.scale as f32,
        })?;
        Ok(vec![y, conv_state, state])
    },
    reference: |t| reference::forward(t, &settings(t)),
    gradient: Gradient::None(WHY),
    tolerance: Tolerance::F32_SUMS,
    fills: &[
        ("filter", Fill::Uniform(-0.5, 0.5)),
        ("a_log", Fill::Uniform(0.0, 2.7)),
        ("dt_bias", Fill::Uniform(-6.0, -2.0)),
        ("norm", Fill::Uniform(0.5, 1.5)),
        ("state", Fill::Normal(0.2)),
    ],
    cases: &[
        // W = 2 H K + 2 G V + 2 G, C = 2 H K + G V
        Case::new("one element", &[('B', 1), ('G', 1), ('K', 1), ('V', 1), ('L', 2), ('C', 3), ('W', 6)]),
        Case::new(
            "unequal heads, odd widths, three taps",
            &[('B', 3), ('G', 6), ('K', 5), ('V', 17), ('L', 3), ('C', 122), ('W', 236)],
        ),
        Case::new(
            "grouped by key head, an odd number of heads",
            &[('B', 2), ('G', 3), ('K', 12), ('V', 8), ('L', 4), ('C', 96), ('W', 126)],
        )
        .options(&[("by key head", 1.0)]),
        Case::new(
            "grouped by key head, two value heads each",
            &[('B', 3), ('G', 4), ('K', 32), ('V', 64), ('L', 4), ('C', 384), ('W', 648)],
        )
        .options(&[("by key head", 1.0)]),
        Case::new(
            "strong decay, factors of one's own",
            &[('B', 2), ('G', 2), ('K', 63), ('V', 5), ('L', 5), ('C', 262), ('W', 276)],
        )
        .filled(&[("dt_bias", Fill::Uniform(0.0, 4.0))])
        .options(&[("scale", 0.3), ("beta scale", 2.0), ("l2 eps", 0.5), ("norm eps", 0.1)]),
        Case::new(
            "a model's heads",
            &[('B', 2), ('G', 8), ('K', 128), ('V', 128), ('L', 4), ('C', 2_048), ('W', 3_088)],
        ),
        Case::new(
            "heads larger than registers",
            &[('B', 1), ('G', 2), ('K', 256), ('V', 200), ('L', 4), ('C', 1_424), ('W', 1_828)],
        ),
    ],
    fixed: &['C', 'W', 'G', 'K', 'V', 'L'],
    largest: 9,
    bench: &[
        Case::new(
            "a small model",
            &[('B', 1), ('G', 16), ('K', 128), ('V', 128), ('L', 4), ('C', 6_144), ('W', 8_224)],
        ),
        Case::new("32 heads", &[('B', 1), ('G', 32), ('K', 128), ('V', 128), ('L', 4), ('C', 8_192), ('W', 12_352)]),
    ],
    cost: |d| {
        let states = d['B'] * d['G'] * d['V'] * d['K'];
        let window = d['B'] * (d['L'] - 1) * d['C'];
        let rows = d['B'] * (d['W'] + d['G'] * d['V']);
        let bytes = 4 * (2 * states + 2 * window + rows + d['C'] * d['L']);
        Cost { bytes, flops: 7 * states + 2 * d['B'] * d['C'] * d['L'], ..Cost::default() }
    },
    ..Op::BASE
};

fn settings<T>(t: &Given<T>) -> Settings {
    let option = |name, default| t.option(name).unwrap_or(default);
    Settings {
        layout: if t.flag("by key head") { HeadLayout::ByKeyHead } else { HeadLayout::Separate },
        l2_eps: option("l2 eps", 1e-6),
        norm_eps: option("norm eps", 1e-6),
        beta_scale: option("beta scale", 1.0),
        scale: option("scale", (t.dims['K'] as f64).sqrt().recip()),
    }
}
