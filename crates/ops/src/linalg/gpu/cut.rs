//! Products of tensors that are larger than a binding, as products that each see parts of them.

use super::{Gemm, GemmSizes, GpuMatrix, MatOrder};
use crate::common::gpu::ALIGNMENT;
use alluvium_core::Result;

/// The axes along which a product may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MatAxis {
    Count,
    M,
    K,
    N,
}

/// Pieces have a multiple of this many lines where that many fit: whole tiles.
const TILE: usize = 128;
/// Columns of results are cut between vec4s, which are written whole.
const QUAD: usize = 4;

impl GemmSizes {
    fn along(&mut self, axis: MatAxis) -> &mut usize {
        match axis {
            MatAxis::Count => &mut self.count,
            MatAxis::M => &mut self.m,
            MatAxis::K => &mut self.k,
            MatAxis::N => &mut self.n,
        }
    }
}

impl GpuMatrix<'_> {
    /// Bytes of the tensor as it is bound.
    pub(super) fn bytes(&self) -> usize {
        (self.tensor.elements() * self.tensor.dtype().size()).next_multiple_of(16)
    }

    /// The axes of lines and of what is in them, of a matrix with these rows and columns.
    fn axes(&self, [rows, columns]: [MatAxis; 2]) -> [MatAxis; 2] {
        if self.order == MatOrder::RowMajor { [rows, columns] } else { [columns, rows] }
    }

    /// Elements from the first to the last of all matrices.
    fn reach(&self, mut sizes: GemmSizes, axes: [MatAxis; 2]) -> usize {
        let [lines, width] = self.axes(axes).map(|axis| *sizes.along(axis));
        (sizes.count - 1) * self.batch_stride + (lines - 1) * self.stride + width
    }

    /// The matrix without the first elements of an axis.
    fn past(self, axes: [MatAxis; 2], axis: MatAxis, by: usize) -> Self {
        let [lines, width] = self.axes(axes);
        let step = match axis {
            MatAxis::Count => self.batch_stride,
            axis if axis == lines => self.stride,
            axis if axis == width => 1,
            _ => 0,
        };
        GpuMatrix { at: self.at + by * step, ..self }
    }

    /// The same matrices, of which no more is bound than what they reach, if the tensor is larger than a binding.
    fn bound(self, binding: usize, sizes: GemmSizes, axes: [MatAxis; 2]) -> Self {
        if self.bytes() <= binding || self.packed.is_some() {
            return self;
        }
        let size = self.tensor.dtype().size();
        let first = self.at * size / ALIGNMENT * ALIGNMENT;
        let end = (self.at + self.reach(sizes, axes)) * size;
        GpuMatrix { at: self.at - first / size, bound_range: Some([first, end]), ..self }
    }
}

const A: [MatAxis; 2] = [MatAxis::M, MatAxis::K];
const B: [MatAxis; 2] = [MatAxis::K, MatAxis::N];
const C: [MatAxis; 2] = [MatAxis::M, MatAxis::N];

/// Runs a product in pieces of which a binding holds all matrices: as a whole if it holds them already. Sums that are
/// cut go on from what the piece before left.
pub(super) fn pieces(binding: usize, args: &Gemm<'_>, run: &dyn Fn(&Gemm<'_>) -> Result<()>) -> Result<()> {
    let Gemm { a, b, c, mut sizes, .. } = *args;
    let Some((axis, most)) = cut(binding, args) else {
        let [a, b, c] = [(a, A), (b, B), (c, C)].map(|(mat, axes)| mat.bound(binding, sizes, axes));
        return run(&Gemm { a, b, c, ..*args });
    };
    let end = *sizes.along(axis);
    for first in (0..end).step_by(most) {
        *sizes.along(axis) = most.min(end - first);
        let [a, b, c] = [(a, A), (b, B), (c, C)].map(|(mat, axes)| mat.past(axes, axis, first));
        let beta = if axis == MatAxis::K && first > 0 { 1.0 } else { args.beta };
        pieces(binding, &Gemm { a, b, c, sizes, beta, ..*args }, run)?;
    }
    Ok(())
}

/// The next cut that brings a matrix nearer to fitting: an axis and how much of it fits. None if all fit, or if so
/// little fits that a cut does not help; the launch says so.
fn cut(binding: usize, args: &Gemm<'_>) -> Option<(MatAxis, usize)> {
    let mut sizes = args.sizes;
    for (mat, axes) in [(&args.a, A), (&args.b, B), (&args.c, C)] {
        // matrices need not begin where a binding may; those that are quantized are cut by their callers
        let room = binding.saturating_sub(ALIGNMENT) / mat.tensor.dtype().size();
        if mat.bytes() <= binding || mat.packed.is_some() || mat.reach(sizes, axes) <= room {
            continue;
        }
        let [outer, inner] = mat.axes(axes);
        let [lines, width] = [outer, inner].map(|axis| *sizes.along(axis));
        let one = (lines - 1) * mat.stride + width;
        let (axis, most) = if sizes.count > 1 && mat.batch_stride > 0 {
            return Some((MatAxis::Count, room.saturating_sub(one) / mat.batch_stride + 1));
        } else if lines > 1 {
            (outer, room.saturating_sub(width) / mat.stride + 1)
        } else {
            (inner, room)
        };
        let most = if most >= TILE { most / TILE * TILE } else { most };
        let whole = if most >= QUAD { most / QUAD * QUAD } else { most };
        return (whole > 0 && (axis != MatAxis::N || whole >= QUAD)).then_some((axis, whole));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::{DType, Device, Tensor};
    use std::cell::RefCell;

    const BINDING: usize = 1 << 12;

    fn zeros(elements: usize, dtype: DType) -> Tensor {
        Tensor::zeros([elements], dtype, &Device::cpu()).unwrap()
    }

    /// The matrices of a product, of which the sides lie in columns where it says so.
    fn mats(tensors: &[Tensor; 3], GemmSizes { m, k, n, .. }: GemmSizes, columns: [bool; 2]) -> [GpuMatrix<'_>; 3] {
        let [a, b, c] = tensors;
        let side = |x, rows, cols, columns| match columns {
            true => GpuMatrix::new(x, rows, rows * cols).t(),
            false => GpuMatrix::new(x, cols, rows * cols),
        };
        [side(a, m, k, columns[0]), side(b, k, n, columns[1]), side(c, m, n, false)]
    }

    /// The place in the tensor of an element of a matrix, which has to be bound.
    fn place(mat: &GpuMatrix<'_>, batch: usize, [row, column]: [usize; 2]) -> usize {
        let [line, inner] = if mat.order == MatOrder::RowMajor { [row, column] } else { [column, row] };
        let at = mat.at + batch * mat.batch_stride + line * mat.stride + inner;
        let size = mat.tensor.dtype().size();
        let Some([first, end]) = mat.bound_range else { return at };
        assert!(first % ALIGNMENT == 0 && end <= mat.tensor.elements() * size && end - first <= BINDING);
        assert!(first + (at + 1) * size <= end);
        first / size + at
    }

    #[test]
    fn pieces_see_no_more_than_a_binding_and_make_every_result_once_of_its_whole_sum() {
        let all =
            [(70, 50, 90, 1), (9, 1_000, 12, 1), (300, 7, 13, 3), (1, 3_000, 5, 1), (3, 5, 4_000, 1), (5, 6, 7, 60)];
        for (m, k, n, count) in all {
            let sizes = GemmSizes { m, k, n, count };
            for (columns, dtype) in [
                ([false, false], DType::F32),
                ([true, false], DType::F32),
                ([true, true], DType::BF16),
                ([false, true], DType::BF16),
            ] {
                // lines of the right side that are too long are not cut
                if columns[1] && k * dtype.size() > BINDING / 5 {
                    continue;
                }
                let tensors = [m * k, k * n, m * n].map(|elements| zeros(count * elements, dtype));
                let [a, b, c] = mats(&tensors, sizes, columns);
                // what was there counts once; each term of a sum has a weight of its own, so none is left out or added
                // twice
                let (c_was, results) = (1_000_000usize, RefCell::new(vec![1_000_000usize; count * m * n]));
                let (seen, ran) = (RefCell::new(0), RefCell::new(0));
                let run = |piece: &Gemm<'_>| {
                    *ran.borrow_mut() += 1;
                    *seen.borrow_mut() += piece.sizes.m * piece.sizes.k * piece.sizes.n * piece.sizes.count;
                    for (batch, row, column) in each(piece.sizes) {
                        let to = place(&piece.c, batch, [row, column]);
                        let terms = (0..piece.sizes.k).map(|i| {
                            let (x, y) = (place(&piece.a, batch, [row, i]), place(&piece.b, batch, [i, column]));
                            x % 97 + y % 89
                        });
                        let was = if piece.beta == 2.0 { 2 } else { 1 };
                        let sum = was * results.borrow()[to] + terms.sum::<usize>();
                        results.borrow_mut()[to] = sum;
                    }
                    Ok(())
                };
                pieces(BINDING, &Gemm { a, b, c, sizes, alpha: 1.0, beta: 2.0 }, &run).unwrap();
                assert!(*ran.borrow() > 1 && *seen.borrow() == m * k * n * count, "{sizes:?} {columns:?}");
                for (batch, row, column) in each(sizes) {
                    let terms = (0..k).map(|i| place(&a, batch, [row, i]) % 97 + place(&b, batch, [i, column]) % 89);
                    let want = 2 * c_was + terms.sum::<usize>();
                    assert_eq!(results.borrow()[place(&c, batch, [row, column])], want, "{sizes:?} {columns:?}");
                }
            }
        }
    }

    fn each(sizes: GemmSizes) -> impl Iterator<Item = (usize, usize, usize)> {
        let GemmSizes { m, n, count, .. } = sizes;
        (0..count * m * n).map(move |i| (i / (m * n), i / n % m, i % n))
    }

    #[test]
    fn what_fits_is_one_piece_that_binds_all_and_lines_of_the_right_side_that_are_too_long_are_left_to_the_launch() {
        for (k, fits) in [(8, true), (400, false)] {
            let sizes = GemmSizes { m: 9, k, n: 30, count: 1 };
            let tensors = [9 * k, k * 30, 9 * 30].map(|elements| zeros(elements, DType::F32));
            let [a, b, c] = mats(&tensors, sizes, [false, true]);
            let ran = RefCell::new(Vec::new());
            let run = |piece: &Gemm<'_>| {
                ran.borrow_mut().push((piece.sizes, piece.b.bound_range));
                Ok(())
            };
            pieces(BINDING, &Gemm { a, b, c, sizes, alpha: 1.0, beta: 0.0 }, &run).unwrap();
            let ran = ran.into_inner();
            match fits {
                true => assert_eq!(ran, [(sizes, None)]),
                false => assert!(ran.iter().all(|(_, seen)| seen.is_some_and(|[first, end]| end - first > BINDING))),
            }
        }
    }
}
