//! The formats of quantized matrices, packed as in MLX.

use alluvium_core::cpu::{Buffer, Cpu};
use alluvium_core::{DType, Error, Kind, Result, Shape, Tensor};
use std::ops::Range;

/// The dtypes of scales: floating for affine packing, u8 for the others.
pub(crate) const SCALES: &[DType] = &[DType::F32, DType::F16, DType::BF16, DType::U8];

/// A format that packs a row of floats into 32-bit words.
///
/// Every row is one stream of bits, the lowest first, and is cut into groups that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// `scale · code + bias`, with whole codes from 0.
    Affine {
        /// Bits of a code: 1, 2, 3, 4, 5, 6 or 8.
        bits: u32,
        /// Elements of a group: 32, 64 or 128.
        group: usize,
    },
    /// Codes are e2m1 floats, groups of 32 have a power of two (e8m0) as their scale.
    Mxfp4,
    /// Codes are e4m3 floats, groups of 32 have a power of two (e8m0) as their scale.
    Mxfp8,
    /// Codes are e2m1 floats, groups of 16 have an e4m3 float as their scale.
    Nvfp4,
}

impl Packing {
    /// Bits of a code.
    pub fn bits(self) -> usize {
        match self {
            Packing::Affine { bits, .. } => bits as usize,
            Packing::Mxfp8 => 8,
            Packing::Mxfp4 | Packing::Nvfp4 => 4,
        }
    }

    /// Elements of a group.
    pub fn group(self) -> usize {
        match self {
            Packing::Affine { group, .. } => group,
            Packing::Mxfp4 | Packing::Mxfp8 => 32,
            Packing::Nvfp4 => 16,
        }
    }

    /// Errs unless the bits and the group are among those that exist.
    pub(crate) fn check(self, op: &'static str) -> Result<()> {
        match self {
            Packing::Affine { bits, .. } if !matches!(bits, 1..=6 | 8) => {
                Err(Error::value(op, format!("codes of {bits} bits, expected 1, 2, 3, 4, 5, 6 or 8")))
            }
            Packing::Affine { group, .. } if !matches!(group, 32 | 64 | 128) => {
                Err(Error::value(op, format!("groups of {group}, expected 32, 64 or 128")))
            }
            _ => Ok(()),
        }
    }
}

/// A quantized matrix, borrowed: rows of `I` values in `I · bits / 32` words.
#[derive(Clone, Copy, Debug)]
pub struct Quantized<'a> {
    /// The codes, u32, `R.. W`.
    pub w: &'a Tensor,
    /// A scale for each group, `R.. G`: floating for affine packing, u8 for the others.
    pub scales: &'a Tensor,
    /// A bias for each group, `R.. G`, floating: affine packing only.
    pub biases: Option<&'a Tensor>,
    /// The format of the codes.
    pub packing: Packing,
}

/// A quantized matrix that is owned: what a layer holds.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The codes, as in [`Quantized`].
    pub w: Tensor,
    /// A scale for each group.
    pub scales: Tensor,
    /// A bias for each group: affine packing only.
    pub biases: Option<Tensor>,
    /// The format of the codes.
    pub packing: Packing,
}

impl Packed {
    /// The same matrix, borrowed.
    pub fn quantized(&self) -> Quantized<'_> {
        Quantized { w: &self.w, scales: &self.scales, biases: self.biases.as_ref(), packing: self.packing }
    }

    /// Some rows along the first axis of a matrix that is not traced: views.
    pub(crate) fn rows(&self, rows: &Range<usize>) -> Result<Packed> {
        let view = |x: &Tensor| x.rows(rows.start, rows.len());
        let biases = self.biases.as_ref().map(view).transpose()?;
        Ok(Packed { w: view(&self.w)?, scales: view(&self.scales)?, biases, packing: self.packing })
    }

    /// The gradients that are wanted as tensors like the scales and biases.
    pub(crate) fn gradients(
        &self,
        cpu: &Cpu,
        [dscales, dbiases]: [Buffer<f32>; 2],
        need: [bool; 2],
    ) -> Result<[Option<Tensor>; 2]> {
        let like = |x: &Tensor, dx| cpu.tensor(dx, x.shape(), x.dtype());
        let dscales = need[0].then(|| like(&self.scales, dscales)).transpose()?;
        let dbiases = self.biases.as_ref().filter(|_| need[1]).map(|biases| like(biases, dbiases)).transpose()?;
        Ok([dscales, dbiases])
    }
}

/// The sizes of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackedLayout {
    pub(crate) packing: Packing,
    /// Words of a row.
    pub(crate) words: usize,
    /// Groups of a row.
    pub(crate) groups: usize,
    /// Elements of a row.
    pub(crate) inner: usize,
}

impl Quantized<'_> {
    /// The same matrix, owned and not traced: what a gradient keeps.
    pub(crate) fn detach(&self) -> Packed {
        let Quantized { w, scales, biases, packing } = *self;
        Packed { w: w.detach(), scales: scales.detach(), biases: biases.map(Tensor::detach), packing }
    }

    /// The sizes of a row, once scales, biases and words are known to belong together.
    pub(crate) fn layout(&self, op: &'static str) -> Result<PackedLayout> {
        let Quantized { w, scales, biases, packing } = *self;
        packing.check(op)?;
        let affine = matches!(packing, Packing::Affine { .. });
        if affine != biases.is_some() {
            let why = if affine { "`biases` is missing" } else { "`biases` came, but only affine packing has them" };
            return Err(Error::value(op, why));
        }
        if affine != scales.dtype().is_float() {
            let want = if affine { "a floating dtype, the packing is affine" } else { "u8" }.to_owned();
            return Err(Kind::Dtype { op, arg: "scales", got: scales.dtype(), want }.into());
        }
        let (bits, group, words) = (packing.bits(), packing.group(), w.shape().last());
        let inner = words * 32 / bits;
        if words * 32 % bits != 0 || inner % group != 0 {
            let want = format!("rows of whole groups of {group} codes of {bits} bits");
            return Err(Kind::Shape { op, arg: "w", got: w.shape(), want }.into());
        }
        let groups = inner / group;
        if scales.shape().last() != groups {
            let want = format!("{groups} groups a row, as `w` {} has", w.shape());
            return Err(Kind::Shape { op, arg: "scales", got: scales.shape(), want }.into());
        }
        Ok(PackedLayout { packing, words, groups, inner })
    }
}

impl PackedLayout {
    /// Errs unless an argument's rows have as many values as this matrix.
    pub(crate) fn fits(&self, op: &'static str, arg: &'static str, got: Shape) -> Result<()> {
        if got.last() == self.inner {
            return Ok(());
        }
        let want =
            format!("[R.., I] with I = {} from `w`, {} words of {} bits", self.inner, self.words, self.packing.bits());
        Err(Kind::Shape { op, arg, got, want }.into())
    }
}
