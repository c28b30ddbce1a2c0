//! The entry of `cross_entropy` in the list.

use super::reference::{self, ReferenceOptions};
use super::{CONTRACT, CrossEntropyArgs, Reduction, cross_entropy};
use crate::op::{Array, Case, Cost, Fill, Given, Gradient, Op, Tolerance};
use alluvium_core::DType;

/// Tokens at once where a case does not say.
pub(crate) const CHUNK: f64 = 128.0;

pub(crate) fn reduction<T>(t: &Given<T>) -> Reduction {
    if t.flag("sum") { Reduction::Sum } else { Reduction::Mean }
}

pub(crate) fn options(t: &Given<Array>) -> ReferenceOptions {
    ReferenceOptions {
        ignore_index: t.option("ignore_index").map(|i| i as usize),
        reduction: reduction(t),
        z_loss: f64::from(t.option("z_loss").unwrap_or(0.0) as f32),
    }
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "negative log-likelihood, fused with the output projection, in chunks of tokens",
    results: &["loss"],
    run: |t| {
        Ok(vec![cross_entropy(CrossEntropyArgs {
            x: &t["x"],
            w: &t["w"],
            targets: &t["targets"],
            ignore_index: t.option("ignore_index").map(|i| i as u32),
            reduction: reduction(t),
            z_loss: t.option("z_loss").unwrap_or(0.0) as f32,
            chunk: t.option("chunk").unwrap_or(CHUNK) as usize,
        })?])
    },
    reference: |t| vec![reference::forward(&t["x"], &t["w"], &t["targets"], &options(t))],
    gradient: Gradient::Of(|t, dy| {
        let [dx, dw] = reference::gradient(&t["x"], &t["w"], &t["targets"], &options(t), dy[0].data[0]);
        vec![Some(dx), Some(dw), None]
    }),
    // where matrix units multiply, the logits' gradient keeps 17 bits
    tolerance: Tolerance { matrix_units: 1.0 / 131_072.0, ..Tolerance::F32_SUMS },
    fills: &[("w", Fill::Normal(0.3)), ("targets", Fill::Ids('V'))],
    cases: &[
        Case::new("one token", &[('N', 1), ('D', 3), ('V', 5)]),
        Case::new("a ragged last chunk", &[('N', 17), ('D', 9), ('V', 33)]).options(&[("chunk", 4.0)]),
        Case::new("summed", &[('N', 7), ('D', 16), ('V', 31)]).options(&[("sum", 1.0), ("chunk", 1.0)]),
        Case::new("ignored targets", &[('N', 33), ('D', 8), ('V', 5)])
            .options(&[("ignore_index", 2.0), ("chunk", 8.0)]),
        Case::new("z-loss", &[('N', 9), ('D', 12), ('V', 17)]).options(&[("z_loss", 0.3)]),
        Case::new("z-loss, ignored and summed", &[('N', 29), ('D', 6), ('V', 3)]).options(&[
            ("z_loss", 0.1),
            ("ignore_index", 0.0),
            ("sum", 1.0),
            ("chunk", 10.0),
        ]),
        Case::new("chunks above one thread's work", &[('N', 130), ('D', 65), ('V', 1_001)]).options(&[("chunk", 63.0)]),
        Case::new("a projection in half precision", &[('N', 11), ('D', 24), ('V', 37)])
            .stored(&[("w", DType::BF16)])
            .options(&[("chunk", 4.0)]),
        Case::new("more words than are summed at once", &[('N', 60), ('D', 3), ('V', 4_501)]),
    ],
    largest: 70,
    bench: &[
        Case::new("256 tokens of 32 k words", &[('N', 256), ('D', 1_024), ('V', 32_768)]),
        Case::new("8192 tokens of 32 k words", &[('N', 8_192), ('D', 2_048), ('V', 32_768)])
            .options(&[("chunk", 1_024.0)]),
        Case::new("16384 tokens of 32 k words", &[('N', 16_384), ('D', 1_024), ('V', 32_768)])
            .options(&[("chunk", 4_096.0)]),
        Case::new("64 tokens of 248 k words", &[('N', 64), ('D', 1_024), ('V', 248_320)]).options(&[("chunk", 64.0)]),
    ],
    cost: |d| {
        let (bytes, flops) = (4 * (d['N'] + d['V']) * d['D'], 2 * d['N'] * d['V'] * d['D']);
        Cost { bytes, flops, backward_bytes: bytes, backward_flops: 2 * flops }
    },
    ..Op::BASE
};
