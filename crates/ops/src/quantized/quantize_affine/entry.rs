//! The entry of `quantize_affine` in the list.

use super::{CONTRACT, NO_GRADIENT, quantize_affine, reference};
use crate::op::{Case, Cost, Fill, Given, Gradient, Op, Oversize, Tolerance};
use alluvium_core::DType;

/// Bits and group of a case.
fn sizes<T>(t: &Given<T>) -> (usize, usize) {
    (t.option("bits").unwrap_or(0.0) as usize, t.option("group").unwrap_or(0.0) as usize)
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "rows packed into codes of a few bits, with a scale and a bias for each group",
    results: &["w", "scales", "biases"],
    run: |t| {
        let (bits, group) = sizes(t);
        let packed = quantize_affine(&t["w"], bits as u32, group)?;
        Ok([Some(packed.w), Some(packed.scales), packed.biases].into_iter().flatten().collect())
    },
    reference: |t| {
        let (bits, group) = sizes(t);
        reference::forward(&t["w"], bits, group)
    },
    gradient: Gradient::None(NO_GRADIENT),
    tolerance: Tolerance::EXACT,
    oversize: Oversize::CutElements,
    cases: &[
        Case::new("1 bit", &[('R', 3), ('I', 96)]).options(&[("bits", 1.0), ("group", 32.0)]),
        Case::new("2 bits, one group", &[('R', 1), ('I', 64)]).options(&[("bits", 2.0), ("group", 64.0)]),
        Case::new("3 bits cross words", &[('R', 5), ('I', 160)]).options(&[("bits", 3.0), ("group", 32.0)]),
        Case::new("4 bits", &[('R', 17), ('I', 192)]).options(&[("bits", 4.0), ("group", 64.0)]),
        Case::new("5 bits cross words", &[('R', 2), ('I', 256)]).options(&[("bits", 5.0), ("group", 128.0)]),
        Case::new("6 bits cross words", &[('R', 3), ('I', 192)]).options(&[("bits", 6.0), ("group", 64.0)]),
        Case::new("8 bits", &[('R', 7), ('I', 128)]).options(&[("bits", 8.0), ("group", 32.0)]),
        Case::new("positive numbers only", &[('R', 9), ('I', 64)])
            .filled(&[("w", Fill::Uniform(0.5, 1.0))])
            .options(&[("bits", 4.0), ("group", 64.0)]),
        Case::new("below the smallest scale", &[('R', 3), ('I', 64)])
            .filled(&[("w", Fill::Normal(2e-7))])
            .stored(&[("w", DType::F32)])
            .options(&[("bits", 4.0), ("group", 64.0)]),
        Case::new("more rows than a thread takes", &[('R', 700), ('I', 256)])
            .options(&[("bits", 4.0), ("group", 64.0)]),
    ],
    fixed: &['I'],
    largest: 70,
    bench: &[Case::new("4 bits", &[('R', 4_096), ('I', 4_096)]).options(&[("bits", 4.0), ("group", 64.0)])],
    cost: |d| {
        let n = d['R'] * d['I'];
        Cost { bytes: 4 * n + n / 2, flops: 6 * n, backward_bytes: 0, backward_flops: 0 }
    },
    ..Op::BASE
};
