//! The entry of `adamw` in the list.

use super::{AdamW, AdamWState, CONTRACT, WHY, adamw, reference};
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Oversize, Tolerance};

fn settings<T>(t: &Given<T>) -> AdamW {
    let default = AdamW::default();
    let or = |name: &str, default: f32| t.option(name).map_or(default, |x| x as f32);
    AdamW {
        learning_rate: or("learning_rate", default.learning_rate),
        beta1: or("beta1", default.beta1),
        beta2: or("beta2", default.beta2),
        eps: or("eps", default.eps),
        weight_decay: or("weight_decay", default.weight_decay),
        step: t.option("step").map_or(default.step, |x| x as u32),
        bias_correction: !t.flag("uncorrected"),
    }
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "a step of Adam with decoupled weight decay, in place",
    results: &["p", "m", "v"],
    run: |t| {
        let [p, m, v] = [t.take("p")?, t.take("m")?, t.take("v")?];
        let AdamWState { p, m, v } = adamw(p, &t["grad"], m, v, &settings(t))?;
        Ok(vec![p, m, v])
    },
    reference: |t| reference::step(t, &settings(t)),
    gradient: Gradient::None(WHY),
    tolerance: Tolerance::F32,
    fills: &[("m", Fill::Normal(0.1)), ("v", Fill::Uniform(0.0, 0.1))],
    oversize: Oversize::CutElements,
    cases: &[
        Case::new("one weight", &[('R', 1)]),
        Case::new("a late step", &[('R', 65)]).options(&[("step", 20_000.0)]),
        Case::new("a large step with strong decay", &[('R', 63)]).options(&[
            ("learning_rate", 0.5),
            ("weight_decay", 0.7),
            ("step", 3.0),
        ]),
        Case::new("a large eps and short memories", &[('R', 17)]).options(&[
            ("learning_rate", 0.3),
            ("eps", 0.5),
            ("beta1", 0.5),
            ("beta2", 0.6),
            ("step", 2.0),
        ]),
        Case::new("means that began at zero are left so", &[('R', 19)]).options(&[
            ("uncorrected", 1.0),
            ("learning_rate", 0.3),
            ("step", 2.0),
        ]),
        Case::new("above one thread's work", &[('R', 100_003)]).options(&[("step", 7.0)]),
    ],
    largest: 2_000,
    bench: &[Case::new("16 M weights", &[('R', 1 << 24)]), Case::new("64 M weights", &[('R', 1 << 26)])],
    cost: |d| Cost { bytes: 28 * d['R'], flops: 14 * d['R'], ..Cost::default() },
    ..Op::BASE
};
