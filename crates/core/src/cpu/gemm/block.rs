//! One thread's product: panels of `b` are packed, strips of `a` are copied, tiles of `c` are kept in registers.
//!
//! An element of `c` is the sum of its products in order, cut every [`DEEP`] steps: the position of its tile and the
//! number of threads do not change it.

use super::{GeneratedMatrix, MatRef, Rhs, Target};
use crate::cpu::simd::F32s;
use std::cell::RefCell;

/// Steps of the sum between two updates of `c`: a strip then fits L1 beside the panel that streams through.
const DEEP: usize = 256;
/// Columns of `b` that are packed at once: half of L2.
const WIDE: usize = 512;
/// Registers across a tile.
const VECTORS: usize = 2;
/// Strips that are copied at once, so that cache lines of a transposed `a` are read whole.
const STRIPS: usize = 8;
/// Elements from one row of a strip to the next; a power of two would map all rows to one cache set.
const PITCH: usize = DEEP + 16;
/// The most rows of a strip, and the elements from one step to the next in a step-major strip.
const TALLEST: usize = 16;
const STRIP: usize = TALLEST * PITCH;

/// The factors of a product that is accumulated: `c ← alpha · a · b + beta · c`.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub(super) alpha: f32,
    pub(super) beta: f32,
}

thread_local! {
    /// Packed panels of `b`, copied strips of `a` and generated elements of `b`, kept between calls.
    static PACKED: RefCell<[Vec<f32>; 3]> = const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

crate::simd! {
    /// `c ← alpha · a · b + beta · c`. The caller gives it an `a.rows × b.cols` target and a sum of at least one step.
    pub(super) fn multiply<S>(a: MatRef<'_>, b: Rhs<'_>, c: Target, factors: Factors) {
        // taken out, not borrowed in a closure, which would not be compiled for the instruction set
        let mut packed = PACKED.take();
        // tiles of 14 rows where there are 32 registers, of 6 where there are 16
        if S::LANES == 8 {
            blocks::<S, 6>(a, b, (c, factors), &mut packed);
        } else {
            blocks::<S, 14>(a, b, (c, factors), &mut packed);
        }
        PACKED.set(packed);
    }
}

#[inline(always)]
fn blocks<S: F32s, const ROWS: usize>(
    a: MatRef<'_>,
    b: Rhs<'_>,
    (c, factors): (Target, Factors),
    [panels, strips, generated]: &mut [Vec<f32>; 3],
) {
    let (m, n, k) = (a.rows, b.sizes()[1], a.cols);
    let strips = aligned(strips, STRIPS * STRIP);
    for p in (0..k).step_by(DEEP) {
        let depth = DEEP.min(k - p);
        let factors = Factors { beta: if p == 0 { factors.beta } else { 1.0 }, ..factors };
        for j in (0..n).step_by(WIDE) {
            let cols = WIDE.min(n - j);
            let width = VECTORS * S::LANES;
            let packed = aligned(panels, cols.next_multiple_of(width) * depth);
            match b.part(p, depth, j, cols) {
                Rhs::Dense(b) => pack(b, width, packed),
                Rhs::Generated(b) => generate(b, width, packed, generated),
            }
            for i in (0..m).step_by(STRIPS * ROWS) {
                let rows = (STRIPS * ROWS).min(m - i);
                let layout = copy::<ROWS>(a.part(i, rows, p, depth), strips);
                let c = Tiles { c: c.at(i * c.stride + j), rows, cols, factors };
                match layout {
                    StripLayout::RowMajor => c.run::<S, ROWS, PITCH, 1>(strips, packed, depth),
                    StripLayout::StepMajor => c.run::<S, ROWS, 1, TALLEST>(strips, packed, depth),
                }
            }
        }
    }
}

/// The order of a strip's elements in memory.
enum StripLayout {
    RowMajor,
    StepMajor,
}

/// Copies rows of `a` into strips of `ROWS`, in the order of `a`: either its rows or its columns are contiguous.
#[inline(always)]
fn copy<const ROWS: usize>(a: MatRef<'_>, strips: &mut [f32]) -> StripLayout {
    if a.col_stride == 1 {
        for i in 0..a.rows {
            let at = i / ROWS * STRIP + i % ROWS * PITCH;
            strips[at..at + a.cols].copy_from_slice(&a.data[i * a.row_stride..][..a.cols]);
        }
        return StripLayout::RowMajor;
    }
    for p in 0..a.cols {
        let from = &a.data[p * a.col_stride..];
        for (strip, i) in strips.chunks_exact_mut(STRIP).zip((0..a.rows).step_by(ROWS)) {
            let rows = ROWS.min(a.rows - i);
            let to = &mut strip[p * TALLEST..][..rows];
            if rows == ROWS {
                // a length that the compiler knows
                to[..ROWS].copy_from_slice(&from[i..][..ROWS]);
            } else {
                to.copy_from_slice(&from[i..][..rows]);
            }
        }
    }
    StripLayout::StepMajor
}

/// The tiles of `c` that a group of strips and the packed panels give.
struct Tiles {
    c: Target,
    rows: usize,
    cols: usize,
    factors: Factors,
}

impl Tiles {
    /// Elements of a strip are `ROW` apart from row to row and `STEP` from step to step.
    #[inline(always)]
    fn run<S: F32s, const ROWS: usize, const ROW: usize, const STEP: usize>(
        &self,
        strips: &[f32],
        panels: &[f32],
        depth: usize,
    ) {
        for (strip, first) in strips.chunks_exact(STRIP).zip((0..self.rows).step_by(ROWS)) {
            let end = self.rows.min(first + ROWS);
            let mut i = first;
            while i < end {
                // the last strip is cut in tiles of powers of two
                let tall = if end - i == ROWS { ROWS } else { 1 << (end - i).ilog2() };
                let strip = &strip[(i - first) * ROW..];
                match tall {
                    8 => self.row::<S, 8, ROW, STEP>(i, strip, panels, depth),
                    4 => self.row::<S, 4, ROW, STEP>(i, strip, panels, depth),
                    2 => self.row::<S, 2, ROW, STEP>(i, strip, panels, depth),
                    1 => self.row::<S, 1, ROW, STEP>(i, strip, panels, depth),
                    _ => self.row::<S, ROWS, ROW, STEP>(i, strip, panels, depth),
                }
                i += tall;
            }
        }
    }

    /// A row of tiles: a strip times each panel in turn.
    #[inline(always)]
    fn row<S: F32s, const TALL: usize, const ROW: usize, const STEP: usize>(
        &self,
        i: usize,
        strip: &[f32],
        panels: &[f32],
        depth: usize,
    ) {
        let width = VECTORS * S::LANES;
        for (panel, j) in panels.chunks_exact(width * depth).zip((0..self.cols).step_by(width)) {
            let sums = sums::<S, TALL, ROW, STEP>(strip, panel);
            let cols = width.min(self.cols - j);
            for (row, sums) in sums.into_iter().enumerate() {
                let start = self.c.at((i + row) * self.c.stride + j).start;
                // SAFETY: row `i + row` and columns `j .. j + cols` lie in the target, which no other thread touches.
                store(sums, unsafe { std::slice::from_raw_parts_mut(start, cols) }, self.factors);
            }
        }
    }
}

/// The innermost loop: `TALL` rows of a strip times a panel.
#[inline(always)]
fn sums<S: F32s, const TALL: usize, const ROW: usize, const STEP: usize>(
    strip: &[f32],
    panel: &[f32],
) -> [[S; VECTORS]; TALL] {
    let width = VECTORS * S::LANES;
    let depth = panel.len() / width;
    assert!(depth > 0 && (TALL - 1) * ROW + (depth - 1) * STEP < strip.len());
    let mut sums = [[S::splat(0.0); VECTORS]; TALL];
    let (a, b) = (strip.as_ptr(), panel.as_ptr());
    for p in 0..depth {
        // SAFETY: `p` < depth, so the panel has `width` elements from `p · width`.
        let b: [S; VECTORS] = std::array::from_fn(|v| unsafe { S::load_ptr(b.add(p * width + v * S::LANES)) });
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `i` < TALL and `p` < depth, which the assert compares with the strip.
            let a = S::splat(unsafe { *a.add(i * ROW + p * STEP) });
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = a.mul_add(b, *sum);
            }
        }
    }
    sums
}

#[inline(always)]
fn store<S: F32s>(sums: [S; VECTORS], c: &mut [f32], Factors { alpha, beta }: Factors) {
    for (sum, c) in sums.into_iter().zip(c.chunks_mut(S::LANES)) {
        let (whole, sum) = (c.len() == S::LANES, sum * S::splat(alpha));
        let new = match beta {
            // what was there is not read: a NaN times 0 would stay
            0.0 => sum,
            _ if whole => S::load(c).mul_add(S::splat(beta), sum),
            _ => S::load_partial(c).mul_add(S::splat(beta), sum),
        };
        if whole { new.store(c) } else { new.store_partial(c) }
    }
}

/// `len` elements of a buffer, from the start of a cache line.
fn aligned(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len + 16 {
        buffer.resize(len + 16, 0.0);
    }
    let skip = buffer.as_ptr().align_offset(64).min(16);
    &mut buffer[skip..skip + len]
}

/// Columns of `b` in panels of `width`, each step of a panel contiguous; columns past the end are 0.
#[inline(always)]
fn pack(b: MatRef<'_>, width: usize, panels: &mut [f32]) {
    let (depth, n) = (b.rows, b.cols);
    for (panel, j) in panels.chunks_exact_mut(width * depth).zip((0..n).step_by(width)) {
        let cols = width.min(n - j);
        if cols < width {
            panel.fill(0.0);
        }
        if b.col_stride != 1 {
            transpose(b.part(0, depth, j, cols), width, panel);
            continue;
        }
        for (p, step) in panel.chunks_exact_mut(width).enumerate() {
            let from = &b.data[p * b.row_stride + j..][..cols];
            if cols == width {
                // a length that the compiler knows
                step.copy_from_slice(&from[..width]);
            } else {
                step[..cols].copy_from_slice(from);
            }
        }
    }
}

/// As [`pack`] for a generated matrix, a few columns at a time.
#[inline(always)]
fn generate(b: GeneratedMatrix<'_>, width: usize, panels: &mut [f32], generated: &mut Vec<f32>) {
    let (depth, n) = (b.rows, b.cols);
    let generated = aligned(generated, GeneratedMatrix::COLS * DEEP);
    for (panels, j) in panels.chunks_mut(GeneratedMatrix::COLS * depth).zip((0..n).step_by(GeneratedMatrix::COLS)) {
        pack(b.part(0, depth, j, GeneratedMatrix::COLS.min(n - j)).generate(generated), width, panels);
    }
}

/// Packs contiguous columns by transposing tiles of 4 × 4, which compilers do in registers.
#[inline(always)]
fn transpose(b: MatRef<'_>, width: usize, panel: &mut [f32]) {
    let [steps, cols] = [b.rows, b.cols].map(|n| n - n % 4);
    for p in (0..steps).step_by(4) {
        for j in (0..cols).step_by(4) {
            let mut x = [[0.0; 4]; 4];
            for (q, x) in x.iter_mut().enumerate() {
                x.copy_from_slice(&b.data[(j + q) * b.col_stride + p..][..4]);
            }
            for r in 0..4 {
                panel[(p + r) * width + j..][..4].copy_from_slice(&[x[0][r], x[1][r], x[2][r], x[3][r]]);
            }
        }
    }
    for p in 0..b.rows {
        for j in if p < steps { cols } else { 0 }..b.cols {
            panel[p * width + j] = b.data[j * b.col_stride + p];
        }
    }
}
