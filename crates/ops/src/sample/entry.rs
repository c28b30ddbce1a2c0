//! The entry of `sample` in the list.

use super::{CONTRACT, Sampling, WHY, reference, sample};
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Tolerance};
use alluvium_core::rng::Rng;

fn sampling<T>(t: &Given<T>) -> Sampling {
    let or = |name: &str, default: f64| t.option(name).unwrap_or(default);
    Sampling {
        temperature: or("temperature", 1.0) as f32,
        top_k: or("top_k", 0.0) as usize,
        top_p: or("top_p", 1.0) as f32,
        min_p: or("min_p", 0.0) as f32,
    }
}

fn draws<T>(t: &Given<T>) -> Vec<f32> {
    let mut rng = Rng::new(4, "draws");
    // a draw in f32 may round up to 1
    (0..t.dims['B']).map(|_| (rng.between(0.0, 1.0) as f32).min(1.0 - f32::EPSILON)).collect()
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "the next token, by temperature, top-k, top-p and min-p",
    results: &["ids"],
    run: |t| Ok(vec![sample(&t["logits"], &sampling(t), &draws(t))?]),
    reference: |t| vec![reference::sample(&t["logits"], &sampling(t), &draws(t))],
    gradient: Gradient::None(WHY),
    tolerance: Tolerance::EXACT,
    fills: &[("logits", Fill::Normal(3.0))],
    cases: &[
        Case::new("greedy", &[('B', 5), ('V', 65)]).options(&[("temperature", 0.0)]),
        Case::new("greedy, equal logits in several parts", &[('B', 7), ('V', 6_148)])
            .filled(&[("logits", Fill::Whole(0, 2_000))])
            .options(&[("temperature", 0.0)]),
        Case::new("greedy, odd rows of several parts", &[('B', 3), ('V', 4_099)]).options(&[("temperature", 0.0)]),
        Case::new("no filter", &[('B', 33), ('V', 63)]),
        Case::new("cold", &[('B', 33), ('V', 130)]).options(&[("temperature", 0.4)]),
        Case::new("hot, of a large vocabulary", &[('B', 9), ('V', 20_011)]).options(&[("temperature", 2.5)]),
        Case::new("top-k", &[('B', 33), ('V', 301)]).options(&[("top_k", 7.0), ("temperature", 3.0)]),
        Case::new("more than there are", &[('B', 5), ('V', 17)]).options(&[("top_k", 99.0)]),
        Case::new("top-p", &[('B', 33), ('V', 301)]).options(&[("top_p", 0.6), ("temperature", 2.0)]),
        Case::new("top-p of nearly all", &[('B', 3), ('V', 5_001)]).options(&[("top_p", 0.999), ("temperature", 5.0)]),
        Case::new("min-p", &[('B', 33), ('V', 301)]).options(&[("min_p", 0.05), ("temperature", 3.0)]),
        Case::new("all filters", &[('B', 65), ('V', 129)]).options(&[
            ("top_p", 0.9),
            ("min_p", 0.02),
            ("top_k", 9.0),
            ("temperature", 1.5),
        ]),
        Case::new("all filters over several parts", &[('B', 5), ('V', 8_200)]).options(&[
            ("top_p", 0.9),
            ("min_p", 0.02),
            ("top_k", 40.0),
            ("temperature", 1.5),
        ]),
    ],
    largest: 400,
    bench: &[
        Case::new("248 k words", &[('B', 1), ('V', 248_320)]).options(&[("temperature", 0.7)]),
        Case::new("248 k words, top-k", &[('B', 1), ('V', 248_320)]).options(&[("temperature", 0.7), ("top_k", 20.0)]),
        Case::new("248 k words, top-p", &[('B', 1), ('V', 248_320)]).options(&[("temperature", 0.7), ("top_p", 0.9)]),
    ],
    cost: |d| Cost { bytes: 4 * d['B'] * d['V'], flops: 8 * d['B'] * d['V'], ..Cost::default() },
    ..Op::BASE
};
