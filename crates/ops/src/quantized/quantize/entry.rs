//! The entry of `quantize` in the list.

use super::{CONTRACT, NO_GRADIENT, quantize, reference};
use crate::op::{Case, Cost, Fill, Gradient, Op, Oversize, Tolerance};
use crate::quantized::reference::packing;

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "rows packed into codes of small floats, with a scale for each group",
    results: &["w", "scales"],
    run: |t| {
        let packed = quantize(&t["w"], packing(t))?;
        Ok(vec![packed.w, packed.scales])
    },
    reference: |t| reference::forward(&t["w"], packing(t)),
    gradient: Gradient::None(NO_GRADIENT),
    tolerance: Tolerance::EXACT,
    oversize: Oversize::CutElements,
    cases: &[
        Case::new("mxfp4", &[('R', 5), ('I', 96)]).options(&[("mxfp4", 1.0)]),
        Case::new("mxfp8", &[('R', 3), ('I', 160)]).options(&[("mxfp8", 1.0)]),
        Case::new("nvfp4", &[('R', 17), ('I', 48)]).options(&[("nvfp4", 1.0)]),
        Case::new("small numbers", &[('R', 3), ('I', 64)])
            .filled(&[("w", Fill::Normal(1e-2))])
            .options(&[("nvfp4", 1.0)]),
        Case::new("large numbers, more than a thread takes", &[('R', 700), ('I', 64)])
            .filled(&[("w", Fill::Normal(1e3))])
            .options(&[("mxfp8", 1.0)]),
    ],
    fixed: &['I'],
    largest: 70,
    bench: &[Case::new("mxfp4", &[('R', 4_096), ('I', 4_096)]).options(&[("mxfp4", 1.0)])],
    cost: |d| {
        let n = d['R'] * d['I'];
        Cost { bytes: 4 * n + n / 2, flops: 3 * n, backward_bytes: 0, backward_flops: 0 }
    },
    ..Op::BASE
};
