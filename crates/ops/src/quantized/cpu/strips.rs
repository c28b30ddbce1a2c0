//! The rows of a quantized matrix on their way through the CPU, as fast as memory has them.

use super::Codes;
use super::product::{Arranged, ArrangedRow, ArrangedRows, PackedProduct, Shape, Tile};
use crate::quantized::PackedLayout;
use alluvium_core::cpu::Prefetch;
use alluvium_core::cpu::simd::F32s;

/// Rows of the matrix that are multiplied at once.
const TALL: usize = 4;
/// Rows of floats that are, if there are several.
const WIDE: usize = 2;
/// Rows of the matrix whose scales are made ready at once.
const STRIP: usize = 32;

/// Elements of scratch that [`products`] needs where scales are not f32.
pub(super) fn scratch(layout: PackedLayout) -> usize {
    2 * STRIP * layout.groups
}

/// Some rows of the matrix.
struct Strip<'a, S: F32s> {
    shape: Shape<S>,
    /// Their words, and those of all rows after them.
    words: &'a [u32],
    scales: &'a [f32],
    /// The factors of the sums of their groups; empty if the sums are not needed.
    offsets: &'a [f32],
}

impl<S: F32s> Strip<'_, S> {
    /// `N` rows from `o` on, to be multiplied with rows of floats.
    #[inline(always)]
    fn tile<'a, const N: usize, const M: usize>(&'a self, o: usize, rows: [ArrangedRow<'a>; M]) -> Tile<'a, S, N, M> {
        let PackedLayout { words, groups, .. } = self.shape.layout;
        let (codes, scales) = (&self.words[o * words..][..N * words], &self.scales[o * groups..][..N * groups]);
        Tile::new(&self.shape, codes, scales, rows)
    }
}

alluvium_core::simd! {
    /// `out[o][r]`, the products of rows `first + o` with the rows `x.1[r]` of values.
    pub(super) fn products<S, P: PackedProduct>(
        matrix: (&Codes<'_>, usize),
        x: (&Arranged, &[usize]),
        scratch: &mut [f32],
        out: &mut [f32],
    ) {
        let ((codes, first), (x, picks)) = (matrix, (x.0.rows(), x.1));
        let shape = Shape::<S>::new::<P>(codes.layout);
        for (i, out) in out.chunks_mut(STRIP * picks.len()).enumerate() {
            let (from, count) = (first + i * STRIP, out.len() / picks.len());
            let groups = codes.groups::<S>(&(from..from + count), scratch);
            let offsets = if P::RAISED && groups.biases.is_empty() { groups.scales } else { groups.biases };
            let strip = Strip { shape, words: codes.rows_from(from), scales: groups.scales, offsets };
            let mut o = 0;
            while o < count {
                let tall = if count - o >= TALL { TALL } else { 1 };
                let out = &mut out[o * picks.len()..(o + tall) * picks.len()];
                let mut r = 0;
                while r < picks.len() {
                    let wide = if tall == TALL && picks.len() - r >= WIDE { WIDE } else { 1 };
                    match (tall, wide) {
                        (TALL, 1) => multiply::<S, P, TALL, 1>(&strip, o, (x, picks), r, out),
                        (TALL, _) => multiply::<S, P, TALL, WIDE>(&strip, o, (x, picks), r, out),
                        _ => multiply::<S, P, 1, 1>(&strip, o, (x, picks), r, out),
                    }
                    r += wide;
                }
                o += tall;
            }
        }
    }
}

/// The products of `N` rows of the matrix from `o` on with `M` rows of floats from `r` on.
#[inline(always)]
fn multiply<S: F32s, P: PackedProduct, const N: usize, const M: usize>(
    strip: &Strip<'_, S>,
    o: usize,
    (x, picks): (ArrangedRows<'_>, &[usize]),
    r: usize,
    out: &mut [f32],
) {
    let mut rows = [x.row(picks[r]); M];
    for (row, &pick) in rows.iter_mut().zip(&picks[r..]) {
        *row = x.row(pick);
    }
    let (tile, Shape { layout, lanes, line, .. }) = (strip.tile::<N, M>(o, rows), strip.shape);
    let (blocks, ahead) = (lanes.div_ceil(S::LANES), Prefetch::of::<u32>(strip.words.len() - (o + N) * layout.words));
    for row in rows {
        assert!(row.units.len() == blocks * S::LANES && row.words.len() == blocks * S::LANES * P::WORDS);
    }
    let mut totals = [[S::splat(0.0); M]; N];
    for block in 0..blocks {
        let first = block * S::LANES;
        // asked for in the order in which they lie in memory
        for n in 0..N {
            ahead.after(strip.words, o * layout.words + (block * N + n) * line);
        }
        // SAFETY: the rows of floats have all lanes of these registers, and those of the matrix are counted.
        unsafe {
            if first + S::LANES <= lanes {
                P::add::<S, N, M, true>(&tile, first, &mut totals);
            } else {
                P::add::<S, N, M, false>(&tile, first, &mut totals);
            }
        }
    }
    for (n, totals) in totals.iter_mut().enumerate().filter(|_| !strip.offsets.is_empty()) {
        let offsets = &strip.offsets[(o + n) * layout.groups..][..layout.groups];
        for (total, row) in totals.iter_mut().zip(&rows) {
            *total = dot::<S>(offsets, row.sums, *total);
        }
    }
    for m in 0..M {
        let out = out[r + m..].iter_mut().step_by(picks.len());
        if let Some([a, b, c, d]) = totals.first_chunk::<TALL>() {
            out.zip(S::sums([a[m], b[m], c[m], d[m]])).for_each(|(out, sum)| *out = sum);
        } else {
            out.zip(&totals).for_each(|(out, totals)| *out = totals[m].sum());
        }
    }
}

/// `sums + a · b`, lane by lane.
#[inline(always)]
fn dot<S: F32s>(a: &[f32], b: &[f32], mut sums: S) -> S {
    let whole = a.len() - a.len() % S::LANES;
    for (a, b) in a.chunks_exact(S::LANES).zip(b.chunks_exact(S::LANES)) {
        sums = S::load(a).mul_add(S::load(b), sums);
    }
    if whole < a.len() { S::load_partial(&a[whole..]).mul_add(S::load_partial(&b[whole..]), sums) } else { sums }
}
