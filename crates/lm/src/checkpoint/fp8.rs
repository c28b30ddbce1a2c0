//! 8-bit floats with a scale per block: the format of the FP8 releases of DeepSeek and Qwen.
//!
//! `X [O, I]`, F8_E4M3, has `X_scale_inv [ceil(O / b), ceil(I / b)]`; an element is its code's value times the scale of
//! its block.

use crate::formats::safetensors::Entry;
use alluvium_core::Shape;
use half::{bf16, f16};
use std::collections::BTreeMap;

/// The suffix of the name of the scales.
pub(super) const SUFFIX: &str = "_scale_inv";
/// The default of `weight_block_size`: rows and columns of a block.
pub(super) const BLOCK: [usize; 2] = [128, 128];

/// The scales of a tensor in fp8.
#[derive(Clone, Debug)]
pub(super) struct BlockScales {
    /// The name of the tensor of scales.
    pub(super) name: String,
    /// Rows and columns of a block.
    pub(super) block: [usize; 2],
}

/// The tensors in fp8 that have scales.
pub(super) fn scales<'a>(
    entry: impl Fn(&str) -> Option<&'a Entry>,
    names: impl Iterator<Item = &'a String>,
) -> BTreeMap<String, BlockScales> {
    let of = |name: &'a String| {
        let weight = name.strip_suffix(SUFFIX)?;
        let is_fp8 = entry(weight)?.dtype.name() == "F8_E4M3";
        is_fp8.then(|| (weight.to_owned(), BlockScales { name: name.clone(), block: BLOCK }))
    };
    names.filter_map(of).collect()
}

impl BlockScales {
    /// The values of the codes of a tensor from its element `first` on. `shape` is the tensor's, `scale` the entry of
    /// the scales and `raw` their bytes.
    ///
    /// # Errors
    /// A message, when the scales do not fit the tensor.
    pub(super) fn dequantize(
        &self,
        (shape, scale): (Shape, &Entry),
        first: usize,
        codes: &[u8],
        raw: &[u8],
    ) -> Result<Vec<f32>, String> {
        let [.., rows, columns] = *shape.dims() else { return Err(format!("{shape} has no rows and columns")) };
        let [high, wide] = [rows.div_ceil(self.block[0]), columns.div_ceil(self.block[1])];
        let want = shape.with(shape.rank() - 2, high).with(shape.rank() - 1, wide);
        if scale.shape != want {
            return Err(format!("it is {}, expected {want} for {shape} in blocks of {:?}", scale.shape, self.block));
        }
        let scales: Vec<f32> = match scale.dtype.name() {
            "F32" => raw.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect(),
            "BF16" => raw.chunks_exact(2).map(|x| bf16::from_le_bytes([x[0], x[1]]).to_f32()).collect(),
            "F16" => raw.chunks_exact(2).map(|x| f16::from_le_bytes([x[0], x[1]]).to_f32()).collect(),
            other => return Err(format!("it is {other}, expected F32, BF16 or F16")),
        };
        let table: Vec<f32> = (0..=u8::MAX).map(e4m3).collect();
        let value = |(at, &code): (usize, &u8)| {
            let (matrix, row, column) = (at / (rows * columns), at / columns % rows, at % columns);
            let block = (matrix * high + row / self.block[0]) * wide + column / self.block[1];
            table[usize::from(code)] * scales[block]
        };
        Ok((first..).zip(codes).map(value).collect())
    }
}

/// The value of a code: a sign, four bits of exponent and three of mantissa; no infinities, and one NaN of each sign.
fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if code & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_values_of_the_format() {
        assert_eq!(
            [0x00, 0x01, 0x07, 0x08, 0x38, 0x3c, 0x7e, 0xfe].map(e4m3),
            [0.0, 0.001_953_125, 0.013_671_875, 0.015_625, 1.0, 1.5, 448.0, -448.0]
        );
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
    }
}
