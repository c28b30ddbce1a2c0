//! Quantized matrices in plain loops and f64, and what entries of their operations share.

use super::{Packing, Quantized};
use crate::op::{Array, Given};
use alluvium_core::Tensor;

/// The packing of a case: `bits` and `group`, or one of the flags `mxfp4`, `mxfp8`, `nvfp4`.
pub(crate) fn packing<T>(t: &Given<T>) -> Packing {
    match t.option("bits") {
        Some(bits) => Packing::Affine { bits: bits as u32, group: t.option("group").unwrap_or(0.0) as usize },
        None if t.flag("mxfp8") => Packing::Mxfp8,
        None if t.flag("nvfp4") => Packing::Nvfp4,
        None if t.flag("mxfp4") => Packing::Mxfp4,
        // refused by every operation
        None => Packing::Affine { bits: 0, group: 0 },
    }
}

/// The quantized matrix of a case.
pub(crate) fn given(t: &Given<Tensor>) -> Quantized<'_> {
    Quantized { w: &t["w"], scales: &t["scales"], biases: t.get("biases"), packing: packing(t) }
}

/// The values of the codes, without scales: `R.. I`.
fn codes(w: &Array, packing: Packing) -> Array {
    let bits = packing.bits();
    let mut values = Vec::new();
    for row in w.rows() {
        let bit = |at: usize| (row[at / 32] as u32 >> (at % 32)) & 1;
        for first in (0..row.len() * 32).step_by(bits) {
            let code = (0..bits).map(|i| bit(first + i) << i).sum::<u32>();
            values.push(match packing {
                Packing::Affine { .. } => f64::from(code),
                Packing::Mxfp8 => e4m3(code),
                Packing::Mxfp4 | Packing::Nvfp4 => e2m1(code),
            });
        }
    }
    Array::new(like(w, values.len() * w.width() / w.data.len()), values)
}

/// The axes of an array, the last with another length.
fn like(x: &Array, width: usize) -> Vec<usize> {
    let mut shape = x.shape.clone();
    shape.pop();
    shape.push(width);
    shape
}

/// A sign, then `exponent` bits, then `mantissa` bits, and the exponent's bias.
fn float(code: u32, exponent: u32, mantissa: u32, bias: i32) -> f64 {
    let fraction = f64::from(code & ((1 << mantissa) - 1)) / f64::from(1 << mantissa);
    let size = match (code >> mantissa) & ((1 << exponent) - 1) {
        0 => fraction * 2f64.powi(1 - bias),
        e => (1.0 + fraction) * 2f64.powi(e as i32 - bias),
    };
    if code >> (exponent + mantissa) & 1 == 0 { size } else { -size }
}

fn e2m1(code: u32) -> f64 {
    float(code, 2, 1, 1)
}

fn e4m3(code: u32) -> f64 {
    if code & 0x7f == 0x7f { f64::NAN } else { float(code, 4, 3, 7) }
}

/// The scale that a number stored for a group means.
fn scale(stored: f64, packing: Packing) -> f64 {
    match packing {
        Packing::Affine { .. } => stored,
        Packing::Mxfp4 | Packing::Mxfp8 => 2f64.powf(stored - 127.0),
        Packing::Nvfp4 => e4m3(stored as u32),
    }
}

/// The matrix as floats.
pub(crate) fn weights(t: &Given<Array>) -> Array {
    let packing = packing(t);
    let mut w = codes(&t["w"], packing);
    for (i, x) in w.data.iter_mut().enumerate() {
        let group = i / packing.group();
        *x = *x * scale(t["scales"].data[group], packing) + t.get("biases").map_or(0.0, |biases| biases.data[group]);
    }
    w
}

/// The gradients of scales and biases from that of the elements; none for a packing whose scales are integers.
pub(crate) fn gradients(t: &Given<Array>, dw: &Array) -> [Option<Array>; 2] {
    let Some(biases) = t.get("biases") else { return [None, None] };
    let packing = packing(t);
    let codes = codes(&t["w"], packing);
    let (mut dscales, mut dbiases) = (Array::zeros(t["scales"].shape.clone()), Array::zeros(biases.shape.clone()));
    for (i, (dw, code)) in dw.data.iter().zip(&codes.data).enumerate() {
        dscales.data[i / packing.group()] += dw * code;
        dbiases.data[i / packing.group()] += dw;
    }
    [Some(dscales), Some(dbiases)]
}
