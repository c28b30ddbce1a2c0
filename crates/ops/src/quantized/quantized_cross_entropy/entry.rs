//! The entry of `quantized_cross_entropy` in the list.

use super::{CONTRACT, QuantizedCrossEntropyArgs, quantized_cross_entropy, reference};
use crate::cross_entropy::entry;
use crate::op::{Case, Cost, Fill, Gradient, Op, Tolerance};
use crate::quantized::reference::given;
use alluvium_core::DType;

/// A case of affine packing: the name, `N V D`, bits and group, and more options.
macro_rules! affine {
    ($name:expr, $n:expr, $v:expr, $d:expr, $bits:expr, $group:expr $(, $option:expr => $value:expr)*) => {
        Case::new($name, &[('N', $n), ('V', $v), ('D', $d), ('W', $d * $bits / 32), ('G', $d / $group)])
            .filled(&[("scales", Fill::Normal(0.3 / (1 << $bits) as f64)), ("biases", Fill::Normal(0.2))])
            .options(&[("bits", $bits as f64), ("group", $group as f64) $(, ($option, $value))*])
    };
}

/// A case of float packing: the name, `N V D`, bits, group, the option's name and the scales.
macro_rules! floats {
    ($name:expr, $n:expr, $v:expr, $d:expr, $bits:expr, $group:expr, $option:expr, $scales:expr) => {
        Case::new($name, &[('N', $n), ('V', $v), ('D', $d), ('W', $d * $bits / 32), ('G', $d / $group)])
            .without(&["biases"])
            .filled(&[("w", Fill::Bytes(0x80, 0xfe)), ("scales", $scales)])
            .stored(&[("scales", DType::U8)])
            .options(&[($option, 1.0), ("chunk", 3.0)])
    };
}

pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "negative log-likelihood, fused with a quantized output projection, in chunks of tokens",
    results: &["loss"],
    run: |t| {
        // the projection is frozen
        let packed = given(t).detach();
        Ok(vec![quantized_cross_entropy(QuantizedCrossEntropyArgs {
            x: &t["x"],
            q: packed.quantized(),
            targets: &t["targets"],
            ignore_index: t.option("ignore_index").map(|i| i as u32),
            reduction: entry::reduction(t),
            z_loss: t.option("z_loss").unwrap_or(0.0) as f32,
            chunk: t.option("chunk").unwrap_or(entry::CHUNK) as usize,
        })?])
    },
    reference: reference::forward,
    gradient: Gradient::Of(reference::gradient),
    tolerance: Tolerance::F32_SUMS,
    fills: &[("w", Fill::Whole(0, u32::MAX)), ("targets", Fill::Ids('V'))],
    cases: &[
        affine!("one token, 4 bits", 1, 5, 32, 4, 32),
        affine!("a ragged last chunk, 2 bits", 17, 33, 64, 2, 32, "chunk" => 4.0),
        affine!("summed, 3 bits", 7, 31, 96, 3, 32, "sum" => 1.0, "chunk" => 1.0),
        affine!("ignored targets, 8 bits", 33, 5, 64, 8, 64, "ignore_index" => 2.0, "chunk" => 8.0),
        affine!("z-loss, 6 bits", 9, 17, 64, 6, 32, "z_loss" => 0.3),
        affine!("5 bits", 11, 9, 128, 5, 128, "chunk" => 10.0),
        affine!("1 bit", 5, 7, 160, 1, 32),
        affine!("chunks above one thread's work, 4 bits", 130, 1_001, 64, 4, 64, "chunk" => 63.0),
        floats!("mxfp4", 4, 9, 96, 4, 32, "mxfp4", Fill::Whole(120, 124)),
        floats!("mxfp8", 5, 5, 160, 8, 32, "mxfp8", Fill::Whole(114, 120)),
        floats!("nvfp4", 6, 5, 48, 4, 16, "nvfp4", Fill::Whole(1, 0x30)),
    ],
    fixed: &['D', 'W', 'G'],
    largest: 40,
    bench: &[
        affine!("256 tokens of 48 k words, 4 bits", 256, 49_152, 576, 4, 64),
        affine!("64 tokens of 248 k words, 4 bits", 64, 248_320, 1_024, 4, 64, "chunk" => 64.0),
    ],
    cost: |d| {
        let (stored, hidden) = (4 * d['V'] * (d['W'] + 2 * d['G']), 4 * d['N'] * d['D']);
        let flops = 2 * d['N'] * d['V'] * d['D'];
        Cost { bytes: stored + hidden, flops, backward_bytes: stored + 2 * hidden, backward_flops: flops }
    },
    ..Op::BASE
};
