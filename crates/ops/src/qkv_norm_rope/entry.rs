//! The entry of `qkv_norm_rope` in the list.

use super::{AttentionHeads, CONTRACT, QkvHeads, QkvNormRopeArgs, WHY, qkv_norm_rope, reference};
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Tolerance};
use crate::{Pairs, Rope, RopeScaling};

fn heads<T>(t: &Given<T>) -> AttentionHeads {
    let option = |name| t.option(name).map_or(1, |n| n as usize);
    let (kv, gated) = (option("G"), !t.flag("plain"));
    let parts = (t.dims['W'] / dim(t)).saturating_sub(2 * kv);
    AttentionHeads { queries: if gated { parts / 2 } else { parts }, kv, dim: dim(t), gated }
}

/// The elements of a head, which only the norms' weights show.
fn dim<T>(t: &Given<T>) -> usize {
    t.option("D").map_or(t.dims['D'], |dim| dim as usize)
}

fn turn<T>(t: &Given<T>) -> Rope {
    let pairs = if t.flag("neighbours") { Pairs::Neighbours } else { Pairs::Halves };
    let dims = t.option("dims").map_or(dim(t) / 2 * 2, |dims| dims as usize);
    let scaling = t.option("factor").map_or(RopeScaling::None, |factor| RopeScaling::Yarn {
        factor: factor as f32,
        original: 1_024.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.2,
        truncate: true,
    });
    Rope { theta: 1e4, dims, scaling, pairs }
}

fn eps<T>(t: &Given<T>) -> f32 {
    t.option("eps").map_or(1e-6, |eps| eps as f32)
}

pub(crate) static OP: Op =
    Op {
        contract: &CONTRACT,
        summary: "queries, keys, values and gates of attention from its projections",
        results: &["q", "k", "v", "gate"],
        run: |t| {
            let norms = t.get("q_norm").zip(t.get("k_norm")).map(|(q, k)| [q, k]);
            let args = QkvNormRopeArgs {
                x: &t["x"],
                positions: &t["positions"],
                norms,
                eps: eps(t),
                heads: heads(t),
                rope: turn(t),
            };
            let QkvHeads { q, k, v, gate } = qkv_norm_rope(args)?;
            Ok([q, k, v].into_iter().chain(gate).collect())
        },
        reference: |t| reference::forward(t, heads(t), f64::from(eps(t)), turn(t)),
        gradient: Gradient::None(WHY),
        tolerance: Tolerance::F32,
        fills: &[("positions", Fill::Uniform(0.0, 4_000.0))],
        cases: &[
            // W = 2 A D + 2 G D, or A D + 2 G D without gates
            Case::new("one pair", &[('R', 3), ('W', 8), ('D', 2)]),
            Case::new("odd widths, three heads", &[('R', 5), ('W', 504), ('D', 63)]),
            Case::new("a model's heads", &[('R', 3), ('W', 5_120), ('D', 256)]).options(&[("G", 2.0), ("dims", 64.0)]),
            Case::new("without gates", &[('R', 7), ('W', 768), ('D', 128)]).options(&[("plain", 1.0), ("G", 2.0)]),
            Case::new("without norms", &[('R', 5), ('W', 96), ('D', 1)])
                .without(&["q_norm", "k_norm"])
                .options(&[("D", 16.0), ("G", 2.0)]),
            Case::new("neighbours, scaled, an eps as large as the squares", &[('R', 4), ('W', 192), ('D', 32)])
                .options(&[("neighbours", 1.0), ("factor", 4.0), ("eps", 0.5)]),
            Case::new("wider than a workgroup", &[('R', 2), ('W', 2_400), ('D', 600)]),
        ],
        fixed: &['W', 'D'],
        largest: 9,
        bench: &[Case::new("decode", &[('R', 1), ('W', 5_120), ('D', 256)]).options(&[("G", 2.0), ("dims", 64.0)])],
        cost: |d| {
            let n = d['R'] * d['W'];
            Cost { bytes: 8 * n, flops: 8 * n, ..Cost::default() }
        },
        ..Op::BASE
    };
