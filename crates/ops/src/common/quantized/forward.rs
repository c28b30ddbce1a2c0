//! Rows of numbers times the transpose of quantised rows, with the codes as they lie.

use super::bytes::ByBytes;
use super::codes::Groups;
use super::decode::{Aligned, Crossing, E2m1, E4m3, Whole};
use super::octets::ByOctets;
use super::{Codes, Packing};
use crate::common::weights::Weights;
use alluvium_core::Result;
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::{Buffer, Cpu, prefetch};
use std::ops::Range;

/// How the numbers of a row are arranged for codes, and multiplied with them.
pub(super) trait Product {
    /// Codes of a lane.
    const CODES: usize;
    /// Words that the numbers of a lane become.
    const WORDS: usize;
    /// Whether the sums of groups count where there are no biases: with the scales.
    const RAISED: bool;

    /// Writes a row of numbers; what is past its end stays zero.
    fn arrange<S: F32s>(x: &[f32], row: RowMut<'_>);

    /// The sums of products of `N` rows of the matrix with `M` rows of numbers, but for what comes of groups' sums.
    fn tile<S: F32s, const N: usize, const M: usize>(strip: &Strip<'_>, rows: &[Row<'_>; M]) -> [[S; M]; N];
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

/// Rows of the matrix that a strip of the kernel takes.
const STRIP: usize = 4;

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

/// One row of [`Arranged`].
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) words: &'a [u32],
    pub(super) units: &'a [f32],
    sums: &'a [f32],
}

/// One row of [`Arranged`] that is being made.
pub(super) struct RowMut<'a> {
    pub(super) words: &'a mut [u32],
    pub(super) units: &'a mut [f32],
    pub(super) sums: &'a mut [f32],
}

impl Arranged {
    #[inline(always)]
    fn row(&self, row: usize) -> Row<'_> {
        fn part<T>(x: &[T], row: usize, count: usize) -> &[T] {
            let each = x.len() / count;
            &x[row * each..(row + 1) * each]
        }
        let part_of = |x| part(x, row, self.count);
        Row { words: part(&self.words, row, self.count), units: part_of(&self.units), sums: part_of(&self.sums) }
    }
}

impl Weights for Codes<'_> {
    type Ready<'x> = Arranged;

    fn inner(&self) -> usize {
        self.layout.inner
    }

    fn numbers<'b>(&'b self, cpu: &Cpu, rows: Range<usize>, panel: &'b mut [f32]) -> &'b [f32] {
        let panel = &mut panel[..rows.len() * self.layout.inner];
        self.expand_rows(cpu, rows, panel);
        panel
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
        by_packing!(self.layout.packing, P => products::<P>(cpu.level(), (self, first), x, scratch, out));
    }

    fn scratch(&self, _rows: usize) -> usize {
        2 * STRIP * self.layout.groups
    }
}

/// Some rows of the matrix.
pub(super) struct Strip<'a> {
    /// Their words, and all that come after them.
    words: &'a [u32],
    /// Words of a row.
    pub(super) each: usize,
    groups: Groups<'a>,
    /// Groups of a row.
    count: usize,
    /// Numbers of a group.
    pub(super) group: usize,
}

impl<'a> Strip<'a> {
    /// The words of row `n`.
    #[inline(always)]
    pub(super) fn row(&self, n: usize) -> &'a [u32] {
        &self.words[n * self.each..][..self.each]
    }

    /// Asks for a part of the rows after these `N`: for line `line` of `lines` in each of as many rows.
    #[inline(always)]
    pub(super) fn prefetch<const N: usize>(&self, n: usize, line: usize, lines: usize) {
        prefetch(self.words, N * self.each + (line * N + n) * self.each.div_ceil(lines));
    }

    /// The scales of the lanes from `first` on in row `n`, where a group has `each` lanes.
    #[inline(always)]
    pub(super) fn scales<S: F32s>(&self, n: usize, first: usize, each: usize) -> S {
        let of_row = &self.groups.scales[n * self.count..][..self.count];
        S::load_spread(&of_row[first / each..self.count.min((first + S::LANES).div_ceil(each))], each)
    }
}

alluvium_core::simd! {
    /// One row of numbers.
    fn arrange<S, P: Product>(x: &[f32], row: RowMut<'_>) {
        P::arrange::<S>(x, row);
    }

    /// `out[o][r]`, the products of rows `first + o` with the rows `x.1[r]` of numbers.
    fn products<S, P: Product>(
        matrix: (&Codes<'_>, usize),
        x: (&Arranged, &[usize]),
        scratch: &mut [f32],
        out: &mut [f32],
    ) {
        let ((codes, first), picks) = (matrix, x.1);
        let count = out.len() / picks.len();
        let mut o = 0;
        while o < count {
            let tall = if count - o >= STRIP { STRIP } else { 1 };
            let rows = first + o..first + o + tall;
            codes.prefetch_groups(rows.end..rows.end + tall);
            let strip = Strip {
                words: codes.rows_from(rows.start),
                each: codes.layout.words,
                groups: codes.groups(&rows, scratch),
                count: codes.layout.groups,
                group: codes.layout.packing.group(),
            };
            let out = &mut out[o * picks.len()..(o + tall) * picks.len()];
            let mut r = 0;
            while r < picks.len() {
                let wide = if tall == STRIP && picks.len() - r >= 2 { 2 } else { 1 };
                match (tall, wide) {
                    (STRIP, 1) => finish::<S, P, STRIP, 1>(&strip, x, r, out),
                    (STRIP, _) => finish::<S, P, STRIP, 2>(&strip, x, r, out),
                    _ => finish::<S, P, 1, 1>(&strip, x, r, out),
                }
                r += wide;
            }
            o += tall;
        }
    }
}

/// The products of `N` rows of the matrix with `M` rows of numbers from `r` on.
#[inline(always)]
fn finish<S: F32s, P: Product, const N: usize, const M: usize>(
    strip: &Strip<'_>,
    (x, picks): (&Arranged, &[usize]),
    r: usize,
    out: &mut [f32],
) {
    let mut rows = [x.row(picks[r]); M];
    for (row, &pick) in rows.iter_mut().zip(&picks[r..]) {
        *row = x.row(pick);
    }
    let offsets = match strip.groups.biases {
        [] if P::RAISED => strip.groups.scales,
        biases => biases,
    };
    for (n, totals) in P::tile::<S, N, M>(strip, &rows).iter().enumerate() {
        for (m, total) in totals.iter().enumerate() {
            let mut total = *total;
            if !offsets.is_empty() {
                let offsets = &offsets[n * strip.count..][..strip.count];
                for (offsets, sums) in offsets.chunks(S::LANES).zip(rows[m].sums.chunks(S::LANES)) {
                    total = S::load_head(offsets).mul_add(S::load_head(sums), total);
                }
            }
            out[n * picks.len() + r + m] = total.sum();
        }
    }
}
