//! A quantized matrix in the CPU's memory, and its rows as floats.

use super::decode::Decode;
use crate::linalg::weights::scratch;
use crate::quantized::{PackedLayout, Packing, Quantized};
use alluvium_core::cpu::simd::{F32s, U32s};
use alluvium_core::cpu::{Buffer, Cpu, Isa, MatrixSource};
use alluvium_core::{DType, Error, Result, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// Runs an expression with `D` the meaning of the codes, to be taken from the stream.
macro_rules! by_meaning {
    ($packing:expr, $D:ident => $body:expr) => {{
        use crate::quantized::cpu::decode::{E2m1, E4m3, Whole};
        match $packing {
            Packing::Affine { .. } => {
                type $D = Whole;
                $body
            }
            Packing::Mxfp4 | Packing::Nvfp4 => {
                type $D = E2m1;
                $body
            }
            Packing::Mxfp8 => {
                type $D = E4m3;
                $body
            }
        }
    }};
}

/// One number for each group, in whatever storage.
#[derive(Clone, Copy, Debug)]
enum PerGroup<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    /// Powers of two by their exponent plus 127 (e8m0).
    Powers(&'a [u8]),
    /// e4m3 floats.
    Small(&'a [u8]),
}

impl<'a> PerGroup<'a> {
    fn new(x: &'a Tensor, packing: Packing) -> Result<Self> {
        match x.dtype() {
            DType::F32 => Ok(PerGroup::F32(x.slice()?)),
            DType::F16 => Ok(PerGroup::F16(x.slice()?)),
            DType::BF16 => Ok(PerGroup::BF16(x.slice()?)),
            DType::U8 if packing == Packing::Nvfp4 => Ok(PerGroup::Small(x.slice()?)),
            DType::U8 => Ok(PerGroup::Powers(x.slice()?)),
            other => Err(Error::value("read", format!("{other} does not hold scales"))),
        }
    }

    /// The values of some groups: themselves, or widened into the start of `wide`.
    #[inline(always)]
    fn read<'b, S: F32s>(&'b self, groups: Range<usize>, wide: &'b mut [f32]) -> &'b [f32] {
        if let PerGroup::F32(x) = self {
            return &x[groups];
        }
        let wide = &mut wide[..groups.len()];
        match self {
            PerGroup::F32(_) => {}
            PerGroup::F16(x) => widen::<S>(&x[groups], wide),
            PerGroup::BF16(x) => wide.iter_mut().zip(&x[groups]).for_each(|(to, from)| {
                *to = f32::from_bits(u32::from(from.to_bits()) << 16);
            }),
            PerGroup::Powers(x) => wide.iter_mut().zip(&x[groups]).for_each(|(to, &from)| *to = power(from)),
            PerGroup::Small(x) => wide.iter_mut().zip(&x[groups]).for_each(|(to, &from)| *to = small(from)),
        }
        wide
    }
}

/// Widens register by register: `half` does so by calls, which take longer than the product that the scales are for.
#[inline(always)]
fn widen<S: F32s>(from: &[f16], to: &mut [f32]) {
    let whole = from.len() - from.len() % S::LANES;
    for (from, to) in from.chunks_exact(S::LANES).zip(to.chunks_exact_mut(S::LANES)) {
        // SAFETY: the chunk is a register's values.
        unsafe { S::load_f16(from.as_ptr()) }.store(to);
    }
    from[whole..].convert_to_f32_slice(&mut to[whole..]);
}

/// `2^(code − 127)`; 255 is NaN.
#[inline(always)]
pub(crate) fn power(code: u8) -> f32 {
    // without a branch, so that many are made at once
    let bits = u32::from(code) << 23;
    f32::from_bits(bits | if code == 0 || code == 255 { 1 << 22 } else { 0 })
}

/// The number of an e4m3 code.
#[inline(always)]
pub(crate) fn small(code: u8) -> f32 {
    // as the bits of an f32 its exponent is 120 too small, whether it is 0 or not
    let size = f32::from_bits(u32::from(code & 0x7f) << 20) * f32::from_bits(247 << 23);
    let size = if code & 0x7f == 0x7f { f32::NAN } else { size };
    f32::from_bits(size.to_bits() | u32::from(code & 0x80) << 24)
}

/// A quantized matrix as kernels see it: its rows one after the other, whatever axes it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<'a> {
    pub(super) words: &'a [u32],
    scales: PerGroup<'a>,
    biases: Option<PerGroup<'a>>,
    pub(crate) layout: PackedLayout,
}

/// Scales and biases of some rows as f32; no biases where the packing has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups<'a> {
    pub(super) scales: &'a [f32],
    pub(super) biases: &'a [f32],
}

impl<'a> Codes<'a> {
    pub(crate) fn new(q: &Quantized<'a>, layout: PackedLayout) -> Result<Self> {
        let biases = q.biases.map(|biases| PerGroup::new(biases, q.packing)).transpose()?;
        Ok(Codes { words: q.w.slice()?, scales: PerGroup::new(q.scales, q.packing)?, biases, layout })
    }

    /// Whether scales and biases are read where they lie: [`Codes::groups`] then needs no memory.
    pub(super) fn is_ready(&self) -> bool {
        let ready = |groups: &PerGroup<'_>| matches!(groups, PerGroup::F32(_));
        ready(&self.scales) && self.biases.as_ref().is_none_or(ready)
    }

    /// The words of some rows.
    #[inline(always)]
    pub(super) fn rows(&self, rows: &Range<usize>) -> &'a [u32] {
        &self.words[rows.start * self.layout.words..rows.end * self.layout.words]
    }

    /// The words of a row and all after it.
    #[inline(always)]
    pub(super) fn rows_from(&self, row: usize) -> &'a [u32] {
        &self.words[row * self.layout.words..]
    }

    /// The scales and biases of some rows.
    #[inline(always)]
    pub(super) fn groups<'b, S: F32s>(&'b self, rows: &Range<usize>, wide: &'b mut [f32]) -> Groups<'b> {
        self.per_group::<S>(rows.start * self.layout.groups..rows.end * self.layout.groups, wide)
    }

    /// The scales and biases of some groups, counted over all rows.
    #[inline(always)]
    fn per_group<'b, S: F32s>(&'b self, groups: Range<usize>, wide: &'b mut [f32]) -> Groups<'b> {
        let (first, second) = wide.split_at_mut(groups.len().min(wide.len()));
        let biases = match &self.biases {
            Some(biases) => biases.read::<S>(groups.clone(), second),
            None => &[],
        };
        Groups { scales: self.scales.read::<S>(groups, first), biases }
    }

    /// Row `row` as floats.
    pub(crate) fn expand(&self, isa: Isa, row: usize, wide: &mut [f32], out: &mut [f32]) {
        self.expand_part(isa, (row, 0..self.layout.groups), wide, out);
    }

    /// Some groups of a row as floats; `wide` is twice as many.
    fn expand_part(&self, isa: Isa, part: (usize, Range<usize>), wide: &mut [f32], out: &mut [f32]) {
        by_meaning!(self.layout.packing, D => expand::<D>(isa, self, part, wide, out));
    }

    /// Some rows as floats, on all threads.
    pub(crate) fn expand_rows(&self, cpu: &Cpu, rows: Range<usize>, out: &mut [f32]) {
        let (isa, inner) = (cpu.isa(), self.layout.inner);
        let grain = cpu.grain(rows.len(), inner);
        cpu.run(|| {
            out.par_chunks_mut(grain * inner).enumerate().for_each_init(
                || scratch(2 * self.layout.groups),
                |wide, (i, out)| {
                    for (j, out) in out.chunks_exact_mut(inner).enumerate() {
                        self.expand(isa, rows.start + i * grain + j, wide, out);
                    }
                },
            );
        });
    }

    /// The whole matrix as floats.
    pub(crate) fn dequantized(&self, cpu: &Cpu) -> Result<Buffer<f32>> {
        let rows = self.words.len() / self.layout.words;
        let mut out = cpu.buffer(rows * self.layout.inner)?;
        self.expand_rows(cpu, 0..rows, &mut out);
        Ok(out)
    }

    /// Adds to the gradients of one row's scales and biases what a gradient of its values means for them.
    pub(super) fn fold(&self, isa: Isa, row: usize, dw: &[f32], dscales: &mut [f32], dbiases: &mut [f32]) {
        let words = self.rows(&(row..row + 1));
        let packing = self.layout.packing;
        by_meaning!(packing, D => fold::<D>(isa, (words, packing), dw, dscales, dbiases));
    }

    /// The gradients of all scales and biases from those of some rows' values: `dw` holds row `rows[i]` at `i`.
    /// Rows that are named twice are added up in order.
    pub(crate) fn scale_gradients_of(&self, cpu: &Cpu, rows: &[usize], dw: &[f32]) -> Result<[Buffer<f32>; 2]> {
        let PackedLayout { words, groups, inner, .. } = self.layout;
        let all = self.words.len() / words;
        let (mut dscales, mut dbiases) = (cpu.zeros(all * groups)?, cpu.zeros(all * groups)?);
        // the sort is stable: places of the same row stay in order, and with them the bits of the sums
        let mut places: Vec<usize> = (0..rows.len()).collect();
        places.sort_by_key(|&place| rows[place]);
        let (grain, isa) = (cpu.grain(all, inner), cpu.isa());
        cpu.run(|| {
            let to = dscales.par_chunks_mut(grain * groups).zip(dbiases.par_chunks_mut(grain * groups));
            to.enumerate().for_each(|(i, (dscales, dbiases))| {
                let first = i * grain;
                let from = places.partition_point(|&place| rows[place] < first);
                let end = places.partition_point(|&place| rows[place] < first + grain);
                for &place in &places[from..end] {
                    let own = (rows[place] - first) * groups..(rows[place] - first + 1) * groups;
                    let (dscales, dbiases) = (&mut dscales[own.clone()], &mut dbiases[own]);
                    self.fold(isa, rows[place], &dw[place * inner..][..inner], dscales, dbiases);
                }
            });
        });
        Ok([dscales, dbiases])
    }
}

impl MatrixSource for Codes<'_> {
    fn write(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, to: &mut [f32]) {
        let group = self.layout.packing.group();
        let part = cols.start / group..cols.end / group;
        let mut wide = scratch(2 * part.len());
        for (row, to) in rows.zip(to.chunks_exact_mut(cols.len())) {
            self.expand_part(isa, (row, part.clone()), &mut wide, to);
        }
    }
}

alluvium_core::simd! {
    /// The values of some groups of a row, group by group.
    fn expand<S, D: Decode>(codes: &Codes<'_>, part: (usize, Range<usize>), wide: &mut [f32], out: &mut [f32]) {
        let (PackedLayout { packing, words, groups, .. }, (row, part)) = (codes.layout, part);
        let (group, bits) = (packing.group(), packing.bits() as u32);
        let each = group * packing.bits() / 32;
        let words = &codes.words[row * words..][part.start * each..part.end * each];
        let groups = codes.per_group::<S>(row * groups + part.start..row * groups + part.end, wide);
        for (g, (out, &scale)) in out.chunks_exact_mut(group).zip(groups.scales).enumerate() {
            let (scale, bias) = (S::splat(scale), S::splat(groups.biases.get(g).copied().unwrap_or(0.0)));
            for (i, out) in out.chunks_exact_mut(S::LANES).enumerate() {
                let codes = S::Bits::unpack(words, g * group + i * S::LANES, bits);
                D::value::<S>(codes).mul_add(scale, bias).store(out);
            }
        }
    }

    /// `dscale += Σ dw · code` and `dbias += Σ dw` over each group.
    fn fold<S, D: Decode>(codes: (&[u32], Packing), dw: &[f32], dscales: &mut [f32], dbiases: &mut [f32]) {
        let (words, group, bits) = (codes.0, codes.1.group(), codes.1.bits() as u32);
        for (g, (dw, (dscale, dbias))) in dw.chunks_exact(group).zip(dscales.iter_mut().zip(dbiases)).enumerate() {
            let mut sums = [S::splat(0.0); 2];
            for (i, dw) in dw.chunks_exact(S::LANES).enumerate() {
                let codes = S::Bits::unpack(words, g * group + i * S::LANES, bits);
                let dw = S::load(dw);
                sums[0] = D::value::<S>(codes).mul_add(dw, sums[0]);
                sums[1] += dw;
            }
            *dscale += sums[0].sum();
            *dbias += sums[1].sum();
        }
    }
}
