//! Rows of numbers times the transpose of quantised rows, with the codes as they lie.

use super::codes::{Groups, by_meaning};
use super::decode::Decode;
use super::{Codes, Packing};
use crate::common::weights::Weights;
use alluvium_core::Result;
use alluvium_core::cpu::simd::{F32s, U32s};
use alluvium_core::cpu::{Buffer, Cpu};
use std::ops::Range;

/// Runs an expression with `D` the meaning of the codes, taken apart in registers where words hold whole ones.
macro_rules! by_packing {
    ($packing:expr, $D:ident => $body:expr) => {{
        use crate::common::quantized::decode::Aligned;
        match $packing {
            Packing::Affine { bits: 2, .. } => {
                type $D = Aligned<2>;
                $body
            }
            Packing::Affine { bits: 4, .. } => {
                type $D = Aligned<4>;
                $body
            }
            Packing::Affine { bits: 8, .. } => {
                type $D = Aligned<8>;
                $body
            }
            other => by_meaning!(other, $D => $body),
        }
    }};
}

/// Rows of quantised numbers that a strip of the kernel takes.
const STRIP: usize = 4;

/// Rows of `x` in the order in which codes lie in registers, and the sums of their groups.
///
/// A register holds words, so its lane `l` has the codes `l · c .. (l + 1) · c`: the same of `x` lies `c` apart.
pub(crate) struct Arranged {
    /// Each row, filled up with zeros to whole registers of words.
    x: Buffer<f32>,
    stride: usize,
    /// The sum of each group.
    sums: Buffer<f32>,
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
        let layout = self.layout;
        let (rows, bits) = (x.len() / layout.inner, layout.packing.bits());
        let stride = match bits {
            2 | 4 | 8 => layout.words.next_multiple_of(cpu.level().lanes()) * 32 / bits,
            _ => layout.inner,
        };
        let (mut to, mut sums) = (cpu.buffer(rows * stride)?, cpu.buffer(rows * layout.groups)?);
        for (row, x) in x.chunks_exact(layout.inner).enumerate() {
            let (to, sums) = (&mut to[row * stride..][..stride], &mut sums[row * layout.groups..][..layout.groups]);
            by_packing!(layout.packing, D => arrange::<D>(cpu.level(), x, to, sums));
        }
        Ok(Arranged { x: to, stride, sums })
    }

    fn dots(&self, cpu: &Cpu, first: usize, x: (&Arranged, &[usize]), scratch: &mut [f32], out: &mut [f32]) {
        let (x, picks) = x;
        let rows = first..first + out.len() / picks.len();
        let block = Block {
            words: self.rows(&rows),
            groups: self.groups(&rows, scratch),
            x,
            picks,
            count: rows.len(),
            group: self.layout.packing.group(),
            bits: self.layout.packing.bits() as u32,
        };
        by_packing!(self.layout.packing, D => products::<D>(cpu.level(), &block, out));
    }

    fn scratch(&self, rows: usize) -> usize {
        2 * rows * self.layout.groups
    }
}

/// Some rows of the matrix, and of `x`.
struct Block<'a> {
    words: &'a [u32],
    groups: Groups<'a>,
    x: &'a Arranged,
    /// The rows of `x` that are wanted.
    picks: &'a [usize],
    /// Rows of the matrix.
    count: usize,
    group: usize,
    bits: u32,
}

impl Block<'_> {
    /// Words and groups of a row.
    fn strides(&self) -> [usize; 2] {
        [self.words.len() / self.count, self.groups.scales.len() / self.count]
    }

    /// A row of `x`.
    fn row(&self, r: usize) -> &[f32] {
        &self.x.x[self.picks[r] * self.x.stride..][..self.x.stride]
    }

    /// The sums of a row's groups.
    fn sums(&self, r: usize, groups: usize) -> &[f32] {
        &self.x.sums[self.picks[r] * groups..][..groups]
    }
}

alluvium_core::simd! {
    /// One row of `x` in the order of the codes, and the sums of its groups.
    fn arrange<S, D: Decode>(x: &[f32], to: &mut [f32], sums: &mut [f32]) {
        let group = x.len() / sums.len();
        for (sum, x) in sums.iter_mut().zip(x.chunks_exact(group)) {
            let mut lanes = S::splat(0.0);
            for x in x.chunks_exact(S::LANES) {
                lanes += S::load(x);
            }
            *sum = lanes.sum();
        }
        if D::BITS == 0 {
            to.copy_from_slice(x);
            return;
        }
        let codes = 32 / D::BITS as usize;
        for (block, to) in to.chunks_exact_mut(codes * S::LANES).enumerate() {
            let x = &x[block * codes * S::LANES..];
            for (j, to) in to.chunks_exact_mut(S::LANES).enumerate() {
                let in_place = D::IN_PLACE && j + 1 < codes;
                let factor = if in_place { 1.0 / (1u64 << (j * D::BITS as usize)) as f32 } else { 1.0 };
                for (lane, to) in to.iter_mut().enumerate() {
                    *to = factor * x.get(lane * codes + j).copied().unwrap_or(0.0);
                }
            }
        }
    }

    /// `out[o][r]`, for all of the block.
    fn products<S, D: Decode>(b: &Block<'_>, out: &mut [f32]) {
        let mut o = 0;
        while o < b.count {
            let strip = if b.count - o >= STRIP { STRIP } else { 1 };
            let mut r = 0;
            while r < b.picks.len() {
                let rows = if strip == STRIP && b.picks.len() - r >= 2 { 2 } else { 1 };
                match (strip, rows) {
                    (1, _) => tile::<S, D, 1, 1>(b, o, r, out),
                    (_, 1) => tile::<S, D, STRIP, 1>(b, o, r, out),
                    _ => tile::<S, D, STRIP, 2>(b, o, r, out),
                }
                r += rows;
            }
            o += strip;
        }
    }
}

/// The products of `N` rows of the matrix from `o` on with `M` rows of `x` from `r` on.
#[inline(always)]
fn tile<S: F32s, D: Decode, const N: usize, const M: usize>(b: &Block<'_>, o: usize, r: usize, out: &mut [f32]) {
    let [_, groups] = b.strides();
    let mut totals = if D::BITS > 0 { by_words::<S, D, N, M>(b, o, r) } else { by_groups::<S, D, N, M>(b, o, r) };
    for (n, totals) in totals.iter_mut().enumerate() {
        for (m, total) in totals.iter_mut().enumerate() {
            if !b.groups.biases.is_empty() {
                let (biases, sums) = (&b.groups.biases[(o + n) * groups..], b.sums(r + m, groups));
                for g in (0..groups).step_by(S::LANES) {
                    let end = groups.min(g + S::LANES);
                    *total = S::load_head(&biases[g..end]).mul_add(S::load_head(&sums[g..end]), *total);
                }
            }
            out[(o + n) * b.picks.len() + r + m] = total.sum();
        }
    }
}

/// Codes that lie whole in words: a register of words is a register of codes, as often as a word has some.
#[inline(always)]
fn by_words<S: F32s, D: Decode, const N: usize, const M: usize>(b: &Block<'_>, o: usize, r: usize) -> [[S; M]; N] {
    let [words, groups] = b.strides();
    let codes = 32 / D::BITS as usize;
    // words of a group: a power of two
    let each = b.group / codes;
    assert!(b.words.len() >= (o + N) * words && b.x.stride >= words.next_multiple_of(S::LANES) * codes);
    let mut rows = [b.row(r); M];
    for (m, row) in rows.iter_mut().enumerate() {
        *row = b.row(r + m);
    }
    let mut totals = [[S::splat(0.0); M]; N];
    for first in (0..words).step_by(S::LANES) {
        let mut sums = [[S::splat(0.0); M]; N];
        let mut w = [S::Bits::splat(0); N];
        for (n, w) in w.iter_mut().enumerate() {
            let at = (o + n) * words + first;
            *w = if words - first >= S::LANES {
                // SAFETY: a register's words are left in the row, which the assert keeps inside the slice.
                unsafe { S::Bits::load_ptr(b.words.as_ptr().add(at)) }
            } else {
                S::Bits::load_head(&b.words[at..(o + n + 1) * words])
            };
        }
        // written out, so that masks and shifts are constants
        macro_rules! every {
            ($($j:literal)*) => {$(
                if $j < codes as u32 {
                    // SAFETY: rows of `x` are filled up to whole registers of words, which the assert has looked at.
                    unsafe { one_code::<S, D, N, M>(&w, $j, rows, first * codes + $j as usize * S::LANES, &mut sums) };
                }
            )*};
        }
        every!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        for (n, (totals, sums)) in totals.iter_mut().zip(sums).enumerate() {
            let of_row = &b.groups.scales[(o + n) * groups..][..groups];
            let scale = S::load_spread(&of_row[first / each..groups.min((first + S::LANES).div_ceil(each))], each);
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = sum.mul_add(scale, *total);
            }
        }
    }
    totals
}

/// Adds the products of the codes `j` of some words with the register at `at` of each row.
///
/// # Safety
/// Each row has a register of numbers at `at`.
#[inline(always)]
unsafe fn one_code<S: F32s, D: Decode, const N: usize, const M: usize>(
    w: &[S::Bits; N],
    j: u32,
    rows: [&[f32]; M],
    at: usize,
    sums: &mut [[S; M]; N],
) {
    let mut x = [S::splat(0.0); M];
    for (row, x) in rows.iter().zip(&mut x) {
        // SAFETY: the caller's promise.
        *x = unsafe { S::load_ptr(row.as_ptr().add(at)) };
    }
    for (w, sums) in w.iter().zip(sums) {
        let w = D::at::<S>(*w, j);
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = w.mul_add(x, *sum);
        }
    }
}

/// Codes that cross words are taken from the stream, group by group.
#[inline(always)]
fn by_groups<S: F32s, D: Decode, const N: usize, const M: usize>(b: &Block<'_>, o: usize, r: usize) -> [[S; M]; N] {
    let [words, groups] = b.strides();
    let mut totals = [[S::splat(0.0); M]; N];
    for g in 0..groups {
        let mut sums = [[S::splat(0.0); M]; N];
        for i in (g * b.group..(g + 1) * b.group).step_by(S::LANES) {
            for (n, sums) in sums.iter_mut().enumerate() {
                let row = &b.words[(o + n) * words..][..words];
                let w = D::value::<S>(S::Bits::codes(row, i, b.bits));
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum = w.mul_add(S::load(&b.row(r + m)[i..]), *sum);
                }
            }
        }
        for (n, (totals, sums)) in totals.iter_mut().zip(sums).enumerate() {
            let scale = S::splat(b.groups.scales[(o + n) * groups + g]);
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = sum.mul_add(scale, *total);
            }
        }
    }
    totals
}
