//! Products with weight matrices in packed codes or half precision, without an f32 copy of the matrix.
//!
//! A few rows are multiplied with the weights as they are stored: bound by reading them. Many rows are worth a general
//! product, whose threads dequantize or widen one block at a time. Either way the order of a row's sums does not depend
//! on the rows beside it, so a sequence is generated bit-identically alone and in a batch of up to [`FEW_ROWS`].

use crate::common::InlineVec;
use crate::common::stored::Stored;
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::{Cpu, GeneratedMatrix, Isa, MatRef, MatrixSource, Prefetch, Rhs, gemm, prefetch};
use alluvium_core::{DType, Result};
use rayon::prelude::*;
use std::ops::Range;

/// Rows up to which the weights are used as they are stored.
pub(crate) const FEW_ROWS: usize = 32;
/// Outputs that a pair or more of rows is multiplied with while it is in L1.
const BLOCK: usize = 8;
/// Products of a task of few rows: some microseconds of work.
const TASK: usize = 1 << 16;
/// Elements of scratch that a task of few rows has without asking the system.
const SCRATCH: usize = 1 << 8;

/// Rows of weights, one after the other whatever axes they have.
pub(crate) trait Weights: MatrixSource {
    /// Rows of another matrix, made ready to be multiplied with these as they are stored.
    type Ready<'x>: Sync;

    /// Elements of a row.
    fn inner(&self) -> usize;

    /// Some rows as the right factor of a product.
    fn factor(&self, cpu: &Cpu, rows: Range<usize>) -> Result<Rhs<'_>>;

    /// Makes rows ready for [`Weights::few`].
    fn ready<'x>(&self, cpu: &Cpu, x: &'x [f32]) -> Result<Self::Ready<'x>>;

    /// `out[o][r] = x[picks[r]] · w[first + o]` for some of the rows; `scratch` is [`Weights::scratch`] values.
    fn dots(&self, cpu: &Cpu, first: usize, x: (&Self::Ready<'_>, &[usize]), scratch: &mut [f32], out: &mut [f32]);

    /// Elements of scratch that [`Weights::dots`] needs.
    fn scratch(&self) -> usize {
        0
    }
}

/// `y[r][o] = x[r] · w[o]` for the rows `w` of the weights; `y` has as many rows as `x`.
pub(crate) fn multiply<W: Weights>(cpu: &Cpu, weights: &W, w: Range<usize>, x: &[f32], y: &mut [f32]) -> Result<()> {
    let rows = x.len() / weights.inner();
    if rows > FEW_ROWS {
        return many(cpu, weights, w, x, y);
    }
    let all: [usize; FEW_ROWS] = std::array::from_fn(|row| row);
    few(cpu, weights, w, (&weights.ready(cpu, x)?, &all[..rows]), y)
}

/// As [`multiply`] for a few rows of `x`, by their places in what was made ready.
pub(crate) fn few<W: Weights>(
    cpu: &Cpu,
    weights: &W,
    w: Range<usize>,
    x: (&W::Ready<'_>, &[usize]),
    y: &mut [f32],
) -> Result<()> {
    let (rows, outer) = (x.1.len(), w.len());
    let each = TASK.div_ceil(rows * weights.inner()).next_multiple_of(4).min(outer);
    let mut columns = cpu.buffer(if rows == 1 { 0 } else { rows * outer })?;
    let to = if rows == 1 { &mut *y } else { &mut columns[..] };
    cpu.run(|| {
        to.par_chunks_mut(each * rows).enumerate().for_each_init(
            || scratch(weights.scratch()),
            |scratch, (i, to)| weights.dots(cpu, w.start + i * each, x, scratch, to),
        );
    });
    for (row, y) in y.chunks_exact_mut(outer).enumerate().filter(|_| rows > 1) {
        y.iter_mut().zip(columns[row..].iter().step_by(rows)).for_each(|(y, &sum)| *y = sum);
    }
    Ok(())
}

/// Elements of scratch for a task.
pub(crate) fn scratch(numbers: usize) -> InlineVec<f32, SCRATCH> {
    InlineVec::new(numbers, 0.0)
}

/// As [`multiply`] for many rows of `x`.
pub(crate) fn many<W: Weights>(cpu: &Cpu, weights: &W, w: Range<usize>, x: &[f32], y: &mut [f32]) -> Result<()> {
    let (inner, factor) = (weights.inner(), weights.factor(cpu, w)?);
    gemm(cpu, 1.0, MatRef::new(x, x.len() / inner, inner)?, factor.t(), 0.0, y)
}

/// `dx = dy · w` for the rows `w` of the weights; `dy` has `w.len()` columns.
pub(crate) fn multiply_back<W: Weights>(
    cpu: &Cpu,
    weights: &W,
    w: Range<usize>,
    dy: &[f32],
    dx: &mut [f32],
) -> Result<()> {
    let (outer, factor) = (w.len(), weights.factor(cpu, w)?);
    gemm(cpu, 1.0, MatRef::new(dy, dy.len() / outer, outer)?, factor, 0.0, dx)
}

/// Weights in a floating dtype.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dense<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) inner: usize,
}

impl<T: Stored> MatrixSource for Dense<'_, T> {
    fn write(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, to: &mut [f32]) {
        widen::<T>(isa, (&self.data[rows.start * self.inner..], self.inner), cols, to);
    }
}

alluvium_core::simd! {
    /// Columns of the first rows of a matrix, and of how many values a row has, as f32.
    fn widen<S, T: Stored>(from: (&[T], usize), cols: Range<usize>, to: &mut [f32]) {
        let (data, inner) = from;
        let (len, line) = (cols.len(), 64 / size_of::<T>());
        let whole = len - len % S::LANES;
        for (row, to) in to.chunks_exact_mut(len).enumerate() {
            let start = row * inner + cols.start;
            let from = &data[start..start + len];
            // pieces of rows that lie apart are nothing that the hardware prefetcher follows; the next ones are these
            // rows' next columns
            for at in (0..len).step_by(line) {
                prefetch(data, start + len + at);
            }
            for i in (0..whole).step_by(S::LANES) {
                // SAFETY: the register's values lie inside the piece.
                unsafe { T::load::<S>(from.as_ptr().add(i)) }.store(&mut to[i..i + S::LANES]);
            }
            if let Some(numbers) = T::source(&from[whole..], &mut to[whole..]) {
                to[whole..].copy_from_slice(numbers);
            }
        }
    }
}

impl<T: Stored> Weights for Dense<'_, T> {
    type Ready<'x> = &'x [f32];

    fn inner(&self) -> usize {
        self.inner
    }

    fn factor(&self, cpu: &Cpu, rows: Range<usize>) -> Result<Rhs<'_>> {
        let from = &self.data[rows.start * self.inner..rows.end * self.inner];
        match T::DTYPE {
            DType::F32 => Ok(MatRef::new(T::widen(from, &mut []), rows.len(), self.inner)?.into()),
            _ => Ok(GeneratedMatrix::new(cpu, self, rows, self.inner).into()),
        }
    }

    fn ready<'x>(&self, _cpu: &Cpu, x: &'x [f32]) -> Result<&'x [f32]> {
        Ok(x)
    }

    fn dots(&self, cpu: &Cpu, first: usize, x: (&&[f32], &[usize]), _scratch: &mut [f32], out: &mut [f32]) {
        products::<T>(cpu.isa(), (&self.data[first * self.inner..], self.inner), (x.0, x.1), out);
    }
}

alluvium_core::simd! {
    /// `out[o][r] = x.1[picks[r]] · w[o]`, with as many values to a row of `w` as it says.
    fn products<S, T: Stored>(w: (&[T], usize), x: (&[f32], &[usize]), out: &mut [f32]) {
        let ((w, inner), count) = (w, x.1.len());
        // four sums of a row take four registers, so three rows fill sixteen registers and four are enough for more
        let most = if S::LANES == 8 { 3 } else { 4 };
        for (block, out) in out.chunks_mut(BLOCK * count).enumerate() {
            for (part, picks) in x.1.chunks(most).enumerate() {
                let mut rows = [&x.0[..inner]; 4];
                for (row, pick) in rows.iter_mut().zip(picks) {
                    *row = &x.0[pick * inner..][..inner];
                }
                for (o, out) in out.chunks_exact_mut(count).enumerate() {
                    let (w, out) = (&w[(block * BLOCK + o) * inner..], &mut out[part * most..][..picks.len()]);
                    match picks.len() {
                        1 => out.copy_from_slice(&dots::<S, T, 1>(w, [rows[0]])),
                        2 => out.copy_from_slice(&dots::<S, T, 2>(w, [rows[0], rows[1]])),
                        3 => out.copy_from_slice(&dots::<S, T, 3>(w, [rows[0], rows[1], rows[2]])),
                        _ => out.copy_from_slice(&dots::<S, T, 4>(w, rows)),
                    }
                }
            }
        }
    }
}

/// Registers that share the sum of a row: the same for any number of rows, so that each is summed in the same order.
const SUMS: usize = 4;

/// The sums of `M` rows with the row at the start of `w`, which is read once.
#[inline(always)]
fn dots<S: F32s, T: Stored, const M: usize>(w: &[T], x: [&[f32]; M]) -> [f32; M] {
    let (inner, step, line) = (x[0].len(), SUMS * S::LANES, 64 / size_of::<T>());
    for x in x {
        assert!(w.len() >= inner && x.len() == inner);
    }
    let (whole, ahead) = (inner - inner % step, Prefetch::of::<T>(w.len() - inner));
    let mut sums = [[S::splat(0.0); SUMS]; M];
    for i in (0..whole).step_by(step) {
        for at in (i..i + step).step_by(line) {
            ahead.after(w, at);
        }
        for k in 0..SUMS {
            let at = i + k * S::LANES;
            // SAFETY: a step from `i` on lies inside all rows.
            unsafe {
                let w: S = T::load(w.as_ptr().add(at));
                for (sums, x) in sums.iter_mut().zip(&x) {
                    sums[k] = w.mul_add(S::load_ptr(x.as_ptr().add(at)), sums[k]);
                }
            }
        }
    }
    let mut wide = [0.0; 16];
    for i in (whole..inner).step_by(S::LANES) {
        let end = inner.min(i + S::LANES);
        let w = S::load_partial(T::widen(&w[i..end], &mut wide));
        for (sums, x) in sums.iter_mut().zip(&x) {
            sums[0] = w.mul_add(S::load_partial(&x[i..end]), sums[0]);
        }
    }
    let mut out = [0.0; M];
    for (out, sums) in out.iter_mut().zip(sums) {
        let mut total = sums[0];
        for sum in &sums[1..] {
            total += *sum;
        }
        *out = total.sum();
    }
    out
}
