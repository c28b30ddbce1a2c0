//! The entry of `gated_delta_step` in the list.

use super::{CONTRACT, GatedDeltaStepArgs, WHY, gated_delta_step, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "one token of the gated delta rule",
    results: &["o", "final_state"],
    run: |t| {
        let state = t.take("state")?;
        let delta = gated_delta_step(GatedDeltaStepArgs {
            q: &t["q"],
            k: &t["k"],
            v: &t["v"],
            g: &t["g"],
            beta: &t["beta"],
            state,
            scale: scale(t) as f32,
        })?;
        Ok(vec![delta.o, delta.final_state])
    },
    reference: |t| reference::forward(t, scale(t)),
    gradient: Gradient::None(WHY),
    tolerance: Tolerance::F32_SUMS,
    fills: &[
        ("q", Fill::UnitRows),
        ("k", Fill::UnitRows),
        ("g", Fill::Uniform(-2.0, -0.001)),
        ("beta", Fill::Uniform(0.05, 0.95)),
    ],
    cases: &[
        Case::new("one number", &[('B', 1), ('H', 1), ('G', 1), ('K', 1), ('V', 1)]),
        Case::new("unequal heads, odd widths", &[('B', 3), ('H', 2), ('G', 6), ('K', 5), ('V', 17)]),
        Case::new("strong decay", &[('B', 1), ('H', 1), ('G', 2), ('K', 63), ('V', 5)])
            .filled(&[("g", Fill::Uniform(-30.0, 0.0))]),
        Case::new("a model's heads", &[('B', 2), ('H', 4), ('G', 8), ('K', 128), ('V', 128)])
            .options(&[("scale", 0.3)]),
    ],
    largest: 70,
    bench: &[
        Case::new("a small model", &[('B', 1), ('H', 16), ('G', 16), ('K', 128), ('V', 128)]),
        Case::new("32 heads", &[('B', 1), ('H', 16), ('G', 32), ('K', 128), ('V', 128)]),
        Case::new("32 heads, 8 sequences", &[('B', 8), ('H', 16), ('G', 32), ('K', 128), ('V', 128)]),
        Case::new("32 heads, 64 sequences", &[('B', 64), ('H', 16), ('G', 32), ('K', 128), ('V', 128)]),
    ],
    cost: |d| {
        let states = d['B'] * d['G'] * d['V'] * d['K'];
        let bytes = 4 * (2 * states + 2 * d['B'] * d['H'] * d['K'] + 2 * d['B'] * d['G'] * (d['V'] + 1));
        Cost { bytes, flops: 7 * states, ..Cost::default() }
    },
    ..Op::BASE
};

fn scale<T>(t: &crate::op::Given<T>) -> f64 {
    t.option("scale").unwrap_or_else(|| (t.dims['K'] as f64).sqrt().recip())
}
