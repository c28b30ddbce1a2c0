//! Rows of numbers times the transpose of quantized rows, with the codes as they lie.

use super::Codes;
use super::bytes::ByBytes;
use super::decode::{Aligned, Crossing, E2m1, E4m3, Whole};
use super::octets::ByOctets;
use super::strips::{self, Tile};
use crate::linalg::weights::Weights;
use crate::quantized::Packing;
use alluvium_core::Result;
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::{Buffer, Cpu, Made, Right};
use std::ops::Range;

/// How the numbers of a row are arranged for codes, and multiplied with them.
pub(super) trait Product {
    /// Codes of a lane.
    const CODES: usize;
    /// Words that the numbers of a lane become.
    const WORDS: usize;
    /// Whether the sums of groups count where there are no biases: with the scales.
    const RAISED: bool;

    /// Writes a row of elements; the rest stays zero.
    fn arrange<S: F32s>(x: &[f32], row: RowMut<'_>);

    /// Adds the products of a register's lanes from lane `first` on to the sums of a tile, without the contribution of the
    /// groups' sums.
    ///
    /// # Safety
    /// The rows of the tile have these lanes, those of the matrix where `WHOLE`.
    unsafe fn add<S: F32s, const N: usize, const M: usize, const WHOLE: bool>(
        tile: &Tile<'_, S, N, M>,
        first: usize,
        totals: &mut [[S; M]; N],
    );
}

/// Runs an expression with `P` the product of a packing.
macro_rules! by_packing {
    ($packing:expr, $P:ident => $body:expr) => {
        by_packing!(@ $packing, $P, $body,
            [Packing::Affine { bits: 1, .. } => ByBytes<Crossing<1>>]
            [Packing::Affine { bits: 2, .. } => ByBytes<Aligned<2>>]
            [Packing::Affine { bits: 3, .. } => ByBytes<Crossing<3>>]
            [Packing::Affine { bits: 4, .. } => ByBytes<Aligned<4>>]
            [Packing::Affine { bits: 5, .. } => ByBytes<Crossing<5>>]
            [Packing::Affine { bits: 6, .. } => ByBytes<Crossing<6>>]
            [Packing::Affine { .. } => ByOctets<Whole>]
            [Packing::Mxfp4 | Packing::Nvfp4 => ByBytes<E2m1>]
            [Packing::Mxfp8 => ByOctets<E4m3>])
    };
    (@ $packing:expr, $P:ident, $body:expr, $([$pattern:pat => $product:ty])*) => {
        match $packing {
            $($pattern => {
                type $P = $product;
                $body
            })*
        }
    };
}

/// Rows of numbers as a [`Product`] wants them.
pub(crate) struct Arranged {
    /// Each row, filled up with zeros to whole registers.
    words: Buffer<u32>,
    /// What each lane is scaled with.
    units: Buffer<f32>,
    /// The sum of each group.
    sums: Buffer<f32>,
    /// Rows.
    count: usize,
}

/// The rows of [`Arranged`].
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    all: Row<'a>,
    /// Of words, units and sums, how many a row has.
    each: [usize; 3],
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> Row<'a> {
        let (Row { words, units, sums }, [w, u, s]) = (self.all, self.each);
        Row { words: &words[row * w..][..w], units: &units[row * u..][..u], sums: &sums[row * s..][..s] }
    }
}

/// One row of [`Arranged`].
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) words: &'a [u32],
    pub(super) units: &'a [f32],
    pub(super) sums: &'a [f32],
}

/// One row of [`Arranged`] that is being made.
pub(super) struct RowMut<'a> {
    pub(super) words: &'a mut [u32],
    pub(super) units: &'a mut [f32],
    pub(super) sums: &'a mut [f32],
}

impl Arranged {
    pub(super) fn rows(&self) -> Rows<'_> {
        let all = Row { words: &self.words, units: &self.units, sums: &self.sums };
        Rows { all, each: [all.words.len(), all.units.len(), all.sums.len()].map(|len| len / self.count) }
    }
}

impl Weights for Codes<'_> {
    type Ready<'x> = Arranged;

    fn inner(&self) -> usize {
        self.layout.inner
    }

    fn factor(&self, cpu: &Cpu, rows: Range<usize>) -> Result<Right<'_>> {
        Ok(Made::new(cpu, self, rows, self.layout.inner).into())
    }

    fn ready(&self, cpu: &Cpu, x: &[f32]) -> Result<Arranged> {
        let (inner, groups) = (self.layout.inner, self.layout.groups);
        let count = x.len() / inner;
        let (codes, each) = by_packing!(self.layout.packing, P => (P::CODES, P::WORDS));
        let lanes = (inner / codes).next_multiple_of(cpu.level().lanes());
        let (words, units) = (cpu.zeros(count * lanes * each)?, cpu.zeros(count * lanes)?);
        let mut ready = Arranged { words, units, sums: cpu.buffer(count * groups)?, count };
        let Arranged { words, units, sums, .. } = &mut ready;
        let rows =
            words.chunks_exact_mut(lanes * each).zip(units.chunks_exact_mut(lanes)).zip(sums.chunks_exact_mut(groups));
        for (x, ((words, units), sums)) in x.chunks_exact(inner).zip(rows) {
            by_packing!(self.layout.packing, P => arrange::<P>(cpu.level(), x, RowMut { words, units, sums }));
        }
        Ok(ready)
    }

    fn dots(&self, cpu: &Cpu, first: usize, x: (&Arranged, &[usize]), scratch: &mut [f32], out: &mut [f32]) {
        by_packing!(self.layout.packing, P => strips::products::<P>(cpu.level(), (self, first), x, scratch, out));
    }

    fn scratch(&self) -> usize {
        if self.is_ready() { 0 } else { strips::scratch(self.layout) }
    }
}

alluvium_core::simd! {
    /// One row of numbers.
    fn arrange<S, P: Product>(x: &[f32], row: RowMut<'_>) {
        P::arrange::<S>(x, row);
    }
}
