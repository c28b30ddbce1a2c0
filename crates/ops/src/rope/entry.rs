//! The entry of `rope` in the list.

use super::{CONTRACT, Pairs, Rope, RopeScaling, reference, rope};
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Oversize, Tolerance};

fn turn<T>(t: &Given<T>) -> Rope {
    let dims = t.option("dims").map_or(t.dims['D'] / 2 * 2, |dims| dims as usize);
    let option = |name| t.option(name).map(|x| x as f32);
    let scaling = match (option("factor"), option("original"), option("attention_factor")) {
        (None, ..) => RopeScaling::None,
        (Some(factor), None, _) => RopeScaling::Linear { factor },
        (Some(factor), Some(original), None) => RopeScaling::Llama3 { factor, low: 1.0, high: 4.0, original },
        (Some(factor), Some(original), Some(attention_factor)) => RopeScaling::Yarn {
            factor,
            original,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor,
            truncate: t.flag("truncate"),
        },
    };
    let pairs = if t.flag("neighbours") { Pairs::Neighbours } else { Pairs::Halves };
    Rope { theta: t.option("theta").unwrap_or(1e4) as f32, dims, scaling, pairs }
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "rotary position embedding",
    results: &["y"],
    run: |t| Ok(vec![rope(&t["x"], &t["positions"], turn(t))?]),
    reference: |t| vec![reference::forward(&t["x"], &t["positions"], turn(t))],
    gradient: Gradient::Of(|t, dy| vec![Some(reference::gradient(&dy[0], &t["positions"], turn(t))), None]),
    tolerance: Tolerance::F32,
    fills: &[("positions", Fill::Uniform(0.0, 4_000.0))],
    oversize: Oversize::CutRows,
    cases: &[
        Case::new("one pair", &[('B', 1), ('T', 3), ('H', 1), ('D', 2)]),
        Case::new("odd sizes, one element passes", &[('B', 2), ('T', 17), ('H', 3), ('D', 63)]),
        Case::new("a quarter is turned", &[('B', 1), ('T', 5), ('H', 2), ('D', 128)])
            .options(&[("dims", 32.0), ("theta", 1e7)]),
        Case::new("a hundred thousand tokens in", &[('B', 1), ('T', 9), ('H', 2), ('D', 64)])
            .filled(&[("positions", Fill::Uniform(1e5, 2.5e5))]),
        Case::new("positions brought closer", &[('B', 1), ('T', 5), ('H', 2), ('D', 8)]).options(&[("factor", 4.0)]),
        Case::new("low frequencies lowered", &[('B', 1), ('T', 5), ('H', 2), ('D', 32)]).options(&[
            ("factor", 8.0),
            ("original", 512.0),
            ("theta", 5e5),
        ]),
        Case::new("YaRN", &[('B', 2), ('T', 5), ('H', 3), ('D', 64)]).options(&[
            ("factor", 4.0),
            ("original", 64.0),
            ("attention_factor", 1.14),
            ("truncate", 1.0),
            ("theta", 1e6),
        ]),
        Case::new("YaRN, bounds between two pairs", &[('B', 1), ('T', 7), ('H', 2), ('D', 31)]).options(&[
            ("factor", 8.0),
            ("original", 512.0),
            ("attention_factor", 0.9),
        ]),
        Case::new("neighbours, a part of the head", &[('B', 2), ('T', 5), ('H', 3), ('D', 19)])
            .options(&[("neighbours", 1.0), ("dims", 14.0)]),
        Case::new("neighbours, the whole head", &[('B', 1), ('T', 33), ('H', 5), ('D', 64)])
            .options(&[("neighbours", 1.0)]),
        Case::new("more than one thread's share", &[('B', 3), ('T', 129), ('H', 5), ('D', 66)]),
    ],
    fixed: &['D'],
    largest: 20,
    bench: &[
        Case::new("decode", &[('B', 1), ('T', 1), ('H', 16), ('D', 256)]).options(&[("dims", 64.0)]),
        Case::new("prefill 4k", &[('B', 1), ('T', 4_096), ('H', 16), ('D', 256)]).options(&[("dims", 64.0)]),
        Case::new("prefill 32k", &[('B', 1), ('T', 32_768), ('H', 16), ('D', 256)]).options(&[("dims", 64.0)]),
    ],
    cost: |d| {
        let n = d['B'] * d['T'] * d['H'] * d['D'];
        Cost { bytes: 8 * n, flops: 3 * n, backward_bytes: 8 * n, backward_flops: 3 * n }
    },
};
