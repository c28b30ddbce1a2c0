//! Matrices of a model as rows of stored tensors.

use super::blocks::{BlockType, GROUP, Stored};
use crate::formats::gguf::GgufFile;
use alluvium_core::{DType, Device, Error, Result, Shape, Tensor};
use alluvium_ops::Packing;
use half::{bf16, f16};
use rayon::prelude::*;

/// The rows of a parameter, taken from one or several stored tensors.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rows {
    /// The stored tensors.
    pub(super) tensors: Vec<String>,
    /// The tensor and the row there of each row; `None` for the rows of the first tensor in their order.
    pub(super) order: Option<Vec<(u32, u32)>>,
    /// The stored column of each column; `None` where they are in order.
    pub(super) columns: Option<Vec<u32>>,
    /// What happens to each element.
    pub(super) map: Map,
}

/// A function of stored elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Map {
    /// None.
    Same,
    /// `ln(−x)`: `A_log` is stored as `−exp(A_log)`.
    LogOfMinus,
}

/// How a parameter is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Plain elements.
    Dense(DType),
    /// Affine groups of 32.
    Affine { bits: usize, scales: DType },
}

impl Kept {
    /// The format of the codes; `None` for plain elements.
    pub(super) fn packing(self) -> Option<Packing> {
        match self {
            Kept::Dense(_) => None,
            Kept::Affine { bits, .. } => Some(Packing::Affine { bits: bits as u32, group: GROUP }),
        }
    }
}

/// One of the tensors of a matrix in affine groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Codes,
    Scales,
    Biases,
}

impl Rows {
    /// All rows of a stored tensor.
    pub(super) fn of(tensor: String) -> Self {
        Rows { tensors: vec![tensor], order: None, columns: None, map: Map::Same }
    }

    /// The type of a stored tensor.
    fn kind(gguf: &GgufFile, tensor: &str) -> Result<BlockType> {
        let kind = BlockType::of(gguf.entry(tensor)?.ggml_type);
        let known = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K";
        kind.map_err(|name| gguf.error(format!("tensor `{tensor}` is {name}; {known} can be read")))
    }

    /// Checks that the stored tensors are the rows of a parameter of this shape.
    ///
    /// # Errors
    /// When one is missing, of an unknown type or of other lengths.
    pub(super) fn check(&self, gguf: &GgufFile, shape: Shape) -> Result<()> {
        let width = self.width(shape);
        let mut counts = Vec::new();
        for tensor in &self.tensors {
            let (entry, kind) = (gguf.entry(tensor)?, Self::kind(gguf, tensor)?);
            if entry.width() != width || !width.is_multiple_of(kind.block().0) {
                let why =
                    format!("tensor `{tensor}` is {} {:?}, its metadata ask for {shape}", kind.name(), entry.dims);
                return Err(gguf.error(why));
            }
            counts.push(entry.rows());
        }
        let stored: usize = counts.iter().sum();
        let rows = match &self.order {
            Some(order) => {
                let is_there =
                    |&(tensor, row): &(u32, u32)| counts.get(tensor as usize).is_some_and(|n| (row as usize) < *n);
                // two parameters share a fused tensor
                let parts = if self.tensors[0].ends_with("gate_up_exps.weight") { 2 } else { 1 };
                if order.iter().all(is_there) && order.len() * parts == stored { order.len() } else { 0 }
            }
            None => stored,
        };
        let columns = self.columns.as_ref();
        let are_columns = columns.is_none_or(|c| c.len() == width && c.iter().all(|&c| (c as usize) < width));
        if rows * width != shape.elements() || !are_columns {
            let dims: Vec<&[usize]> = self.tensors.iter().flat_map(|t| gguf.entry(t)).map(|e| &e.dims[..]).collect();
            let why = format!("tensor {} is {dims:?}, its metadata ask for {shape}", self.tensors.join(" and "));
            return Err(gguf.error(why));
        }
        Ok(())
    }

    /// The length of a row of a parameter: filters `[C, K, 1]` have a last axis of one.
    fn width(&self, shape: Shape) -> usize {
        match shape.dims() {
            [_, taps, 1] => *taps,
            _ => shape.last(),
        }
    }

    /// How a parameter is kept: in groups if all its rows are and the groups stay whole, else in the dtype of its rows
    /// if that is the same for all, else in `dtype`.
    pub(super) fn kept(&self, gguf: &GgufFile, dtype: DType) -> Result<Kept> {
        let mut all = Vec::new();
        for tensor in &self.tensors {
            all.push(Self::kind(gguf, tensor)?.stored());
        }
        let mut kept: Option<Kept> = None;
        for stored in all {
            kept = Some(match (stored, kept) {
                (Stored::Dense(one), None) => Kept::Dense(one),
                (Stored::Dense(one), Some(Kept::Dense(other))) if one == other => Kept::Dense(one),
                (Stored::Affine { bits, scales }, None) if self.has_whole_groups() => Kept::Affine { bits, scales },
                (Stored::Affine { bits, scales }, Some(Kept::Affine { bits: more, scales: other })) => {
                    // a code of few bits is one of more bits, too
                    let scales = if scales == other { scales } else { DType::F32 };
                    Kept::Affine { bits: bits.max(more), scales }
                }
                _ => return Ok(Kept::Dense(dtype)),
            });
        }
        Ok(kept.unwrap_or(Kept::Dense(dtype)))
    }

    /// Whether the order of columns keeps each group of 32 together.
    fn has_whole_groups(&self) -> bool {
        let is_whole = |group: &[u32]| {
            group[0].is_multiple_of(GROUP as u32) && group.iter().zip(group[0]..).all(|(&column, want)| column == want)
        };
        self.columns.as_ref().is_none_or(|columns| columns.chunks(GROUP).all(is_whole))
    }

    /// The stored rows in their order.
    fn read<'a>(&'a self, gguf: &GgufFile) -> Result<Source<'a>> {
        let mut tensors = Vec::new();
        for name in &self.tensors {
            let (entry, kind) = (gguf.entry(name)?, Self::kind(gguf, name)?);
            let (elements, bytes) = kind.block();
            let row = entry.width() / elements * bytes;
            tensors.push((kind, gguf.read(name, entry.rows() * row)?, row));
        }
        Ok(Source { rows: self, tensors })
    }

    /// Makes a plain tensor.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub(super) fn dense(&self, gguf: &GgufFile, shape: Shape, dtype: DType, device: &Device) -> Result<Tensor> {
        let (source, width) = (self.read(gguf)?, self.width(shape));
        let size = dtype.size();
        Tensor::filled(shape, dtype, device, |bytes| {
            bytes.par_chunks_exact_mut(width * size).enumerate().for_each_init(
                || (vec![0.0; width], vec![0.0; width]),
                |(values, moved), (row, bytes)| {
                    source.values(row, values);
                    let values = match &self.columns {
                        Some(columns) => {
                            moved.iter_mut().zip(columns).for_each(|(x, &column)| *x = values[column as usize]);
                            moved
                        }
                        None => values,
                    };
                    if self.map == Map::LogOfMinus {
                        values.iter_mut().for_each(|x| *x = f64::from(-*x).ln() as f32);
                    }
                    write(values, dtype, bytes);
                },
            );
            Ok(())
        })
    }

    /// Makes the codes, the scales or the biases of a matrix in affine groups.
    ///
    /// # Errors
    /// When a file cannot be read, or a bias is too large for the dtype of the scales.
    pub(super) fn part(
        &self,
        gguf: &GgufFile,
        shape: Shape,
        (bits, scales): (usize, DType),
        part: Part,
        device: &Device,
    ) -> Result<Tensor> {
        let (source, width) = (self.read(gguf)?, shape.last());
        let axis = shape.rank() - 1;
        if part == Part::Codes {
            let words = width * bits / 32;
            return Tensor::filled(shape.with(axis, words), DType::U32, device, |bytes| {
                let rows = bytes.par_chunks_exact_mut(words * 4).enumerate();
                rows.for_each_init(
                    || vec![0; width],
                    |codes, (row, bytes)| {
                        source.codes(row, codes);
                        let moved = |group: usize| &codes[source.group(group) * GROUP..][..GROUP];
                        for (group, bytes) in bytes.chunks_exact_mut(bits * GROUP / 8).enumerate() {
                            pack(moved(group), bits, bytes);
                        }
                    },
                );
                Ok(())
            });
        }
        let groups = width / GROUP;
        let tensor = Tensor::filled(shape.with(axis, groups), scales, device, |bytes| {
            let rows = bytes.par_chunks_exact_mut(groups * scales.size()).enumerate();
            rows.try_for_each_init(
                || (vec![0.0; groups], vec![0.0; groups]),
                |(stored, moved), (row, bytes)| {
                    source.groups(row, part, stored);
                    moved.iter_mut().enumerate().for_each(|(group, x)| *x = stored[source.group(group)]);
                    let largest = f16::MAX.to_f32();
                    if scales == DType::F16 && moved.iter().any(|x| x.is_finite() && x.abs() > largest) {
                        let why = format!("tensor `{}` has a bias beyond f16", self.tensors[0]);
                        return Err(gguf.error(format!("{why}; convert it with --dtype float32")));
                    }
                    write(moved, scales, bytes);
                    Ok::<_, Error>(())
                },
            )
        })?;
        Ok(tensor)
    }
}

/// The bytes of the stored tensors of a parameter.
struct Source<'a> {
    rows: &'a Rows,
    /// The type, the bytes and the bytes of a row.
    tensors: Vec<(BlockType, Vec<u8>, usize)>,
}

impl Source<'_> {
    /// The blocks of a row.
    fn blocks(&self, row: usize) -> (BlockType, std::slice::ChunksExact<'_, u8>) {
        let (tensor, row) = match &self.rows.order {
            Some(order) => (order[row].0 as usize, order[row].1 as usize),
            None => (0, row),
        };
        let (kind, bytes, length) = &self.tensors[tensor];
        (*kind, bytes[row * length..(row + 1) * length].chunks_exact(kind.block().1))
    }

    /// The stored group that is group `group` of a row.
    fn group(&self, group: usize) -> usize {
        self.rows.columns.as_ref().map_or(group, |columns| columns[group * GROUP] as usize / GROUP)
    }

    fn values(&self, row: usize, values: &mut [f32]) {
        let (kind, blocks) = self.blocks(row);
        for (values, block) in values.chunks_exact_mut(kind.block().0).zip(blocks) {
            kind.values(block, values);
        }
    }

    fn codes(&self, row: usize, codes: &mut [u8]) {
        let (kind, blocks) = self.blocks(row);
        for (codes, block) in codes.chunks_exact_mut(kind.block().0).zip(blocks) {
            kind.codes(block, codes);
        }
    }

    fn groups(&self, row: usize, part: Part, values: &mut [f32]) {
        let (kind, blocks) = self.blocks(row);
        for (values, block) in values.chunks_exact_mut(kind.block().0 / GROUP).zip(blocks) {
            kind.groups(block, |n, scale, bias| values[n] = if part == Part::Scales { scale } else { bias });
        }
    }
}

/// Packs codes as MLX does: a stream of bits, the low ones first.
fn pack(codes: &[u8], bits: usize, bytes: &mut [u8]) {
    let (mut stream, mut have, mut at) = (0u32, 0, 0);
    for &code in codes {
        stream |= u32::from(code) << have;
        have += bits;
        while have >= 8 {
            bytes[at] = stream as u8;
            (stream, have, at) = (stream >> 8, have - 8, at + 1);
        }
    }
}

/// Writes values as little-endian elements of a floating dtype.
fn write(values: &[f32], dtype: DType, bytes: &mut [u8]) {
    for (x, &value) in bytes.chunks_exact_mut(dtype.size()).zip(values) {
        match dtype {
            DType::BF16 => x.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
            DType::F16 => x.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
            _ => x.copy_from_slice(&value.to_le_bytes()),
        }
    }
}
