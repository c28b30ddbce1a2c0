//! Products of small matrices in cache: a register-tiled kernel that reads its operands without packing.
//!
//! A chunk of the gated delta rule multiplies tiles 64 rows high. A general GEMM spends longer on packing such a tile
//! than on the product, so here the left operand is broadcast from any strides and the right one is read in rows of
//! vectors.

use alluvium_core::cpu::simd::F32s;

/// The left operand: element (i, l) is `data[i · row + l · col]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    data: &'a [f32],
    row: usize,
    col: usize,
}

impl<'a> Left<'a> {
    /// Rows that are `stride` apart.
    pub(crate) fn rows(data: &'a [f32], stride: usize) -> Self {
        Left { data, row: stride, col: 1 }
    }

    /// The transpose of rows that are `stride` apart.
    pub(crate) fn columns(data: &'a [f32], stride: usize) -> Self {
        Left { data, row: 1, col: stride }
    }
}

/// The part of a matrix that is not zero, or that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    All,
    /// On and below the diagonal.
    Lower,
    /// On and above the diagonal.
    Upper,
}

/// `c ← old · c + a · b`, where `c` is `m × n` and the sum runs over `k`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product<'a> {
    /// m, n, k.
    pub(crate) size: [usize; 3],
    /// The left operand.
    pub(crate) a: Left<'a>,
    /// The right operand's rows.
    pub(crate) b: &'a [f32],
    /// The stride of its rows.
    pub(crate) b_stride: usize,
    /// The factor of the old result (beta); with 0 it is not read.
    pub(crate) old: f32,
    /// Where the left operand is not zero. Zeros near the diagonal are still multiplied, so they have to be there.
    pub(crate) left: Part,
    /// The part of the result that is needed. With [`Part::Lower`] the rest has unspecified contents.
    pub(crate) result: Part,
}

impl<'a> Product<'a> {
    /// `c ← a · b`.
    pub(crate) fn new(size: [usize; 3], a: Left<'a>, b: &'a [f32], b_stride: usize) -> Self {
        Product { size, a, b, b_stride, old: 0.0, left: Part::All, result: Part::All }
    }

    /// `c ← old · c + a · b`.
    pub(crate) fn onto(self, old: f32) -> Self {
        Product { old, ..self }
    }

    /// With a triangular left operand.
    pub(crate) fn left(self, left: Part) -> Self {
        Product { left, ..self }
    }

    /// With only the lower triangle of the result.
    pub(crate) fn lower(self) -> Self {
        Product { result: Part::Lower, ..self }
    }

    fn check(&self, c: &[f32], c_stride: usize) {
        let [m, n, k] = self.size;
        let end = |rows: usize, row: usize, cols: usize, col: usize| (rows - 1) * row + (cols - 1) * col + 1;
        assert!(m > 0 && n > 0 && k > 0);
        assert!(end(m, self.a.row, k, self.a.col) <= self.a.data.len());
        assert!(end(k, self.b_stride, n, 1) <= self.b.len());
        assert!(end(m, c_stride, n, 1) <= c.len() && n <= c_stride);
    }
}

alluvium_core::simd! {
    /// Computes a product into rows of `c` that are `c_stride` apart.
    ///
    /// Each element is one sum in the order of `l`, whatever the block it falls in.
    pub(crate) fn product<S>(p: &Product<'_>, c: &mut [f32], c_stride: usize) {
        p.check(c, c_stride);
        let [m, n, _] = p.size;
        let c = c.as_mut_ptr();
        // eight lanes come with sixteen registers, four or sixteen lanes with thirty-two
        let vectors = if S::LANES == 8 { 2 } else { 4 };
        let mut j = 0;
        while j < n {
            let width = (n - j).min(vectors * S::LANES);
            let mut i = 0;
            while i < m {
                let rows = match m - i { 6.. => 6, 4 | 5 => 4, _ => 1 };
                let at = Block { i, j, width: wanted::<S>(p.result, i + rows, j, width), c, c_stride };
                // SAFETY: `check` has asserted that all of the three matrices lies inside their slices, and i + rows ≤
                // m, j + width ≤ n.
                unsafe {
                    match rows {
                        6 => strip::<S, 6>(p, at),
                        4 => strip::<S, 4>(p, at),
                        _ => strip::<S, 1>(p, at),
                    }
                }
                i += rows;
            }
            j += width;
        }
    }
}

/// Columns from `j` on that rows up to `end` need, in whole registers where there is room.
#[inline(always)]
fn wanted<S: F32s>(result: Part, end: usize, j: usize, width: usize) -> usize {
    match result {
        Part::Lower => end.saturating_sub(j).next_multiple_of(S::LANES).min(width),
        _ => width,
    }
}

/// Where a block of the result lies.
#[derive(Clone, Copy)]
struct Block {
    i: usize,
    j: usize,
    width: usize,
    c: *mut f32,
    c_stride: usize,
}

/// `M` rows of the result, up to four registers wide.
///
/// # Safety
/// The block lies inside the result, and the product has been checked.
#[inline(always)]
unsafe fn strip<S: F32s, const M: usize>(p: &Product<'_>, mut at: Block) {
    // SAFETY: the caller's promise; each branch takes no more columns than are left.
    unsafe {
        let mut left = at.width;
        while left > 0 {
            let taken = match left / S::LANES {
                0 => {
                    ragged::<S, M>(p, Block { width: left, ..at });
                    left
                }
                1 => {
                    whole::<S, M, 1>(p, at);
                    S::LANES
                }
                2 => {
                    whole::<S, M, 2>(p, at);
                    2 * S::LANES
                }
                3 => {
                    whole::<S, M, 3>(p, at);
                    3 * S::LANES
                }
                _ => {
                    whole::<S, M, 4>(p, at);
                    4 * S::LANES
                }
            };
            at.j += taken;
            left -= taken;
        }
    }
}

/// The range of the sum for rows `i .. i + rows` of the left operand.
#[inline(always)]
fn span(p: &Product<'_>, i: usize, rows: usize) -> (usize, usize) {
    let k = p.size[2];
    match p.left {
        Part::All => (0, k),
        Part::Lower => (0, k.min(i + rows)),
        Part::Upper => (k.min(i), k),
    }
}

/// A block of `M` rows and `N` registers.
///
/// # Safety
/// As [`strip`].
#[inline(always)]
unsafe fn whole<S: F32s, const M: usize, const N: usize>(p: &Product<'_>, at: Block) {
    let (from, to) = span(p, at.i, M);
    let mut sums = [[S::splat(0.0); N]; M];
    // SAFETY: the caller's promise.
    unsafe {
        let mut a = p.a.data.as_ptr().add(at.i * p.a.row + from * p.a.col);
        let mut b = p.b.as_ptr().add(from * p.b_stride + at.j);
        for _ in from..to {
            let mut vectors = [S::splat(0.0); N];
            for (n, vector) in vectors.iter_mut().enumerate() {
                *vector = S::load_ptr(b.add(n * S::LANES));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let x = S::splat(*a.add(m * p.a.row));
                for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                    *sum = x.mul_add(vector, *sum);
                }
            }
            a = a.wrapping_add(p.a.col);
            b = b.wrapping_add(p.b_stride);
        }
        for (m, sums) in sums.iter().enumerate() {
            let c = at.c.add((at.i + m) * at.c_stride + at.j);
            for (n, &sum) in sums.iter().enumerate() {
                let c = c.add(n * S::LANES);
                let sum = if p.old == 0.0 { sum } else { S::load_ptr(c).mul_add(S::splat(p.old), sum) };
                sum.store_ptr(c);
            }
        }
    }
}

/// A block of `M` rows, narrower than a register.
///
/// # Safety
/// As [`strip`].
#[inline(always)]
unsafe fn ragged<S: F32s, const M: usize>(p: &Product<'_>, at: Block) {
    let (from, to) = span(p, at.i, M);
    let mut sums = [S::splat(0.0); M];
    // SAFETY: the caller's promise.
    unsafe {
        for l in from..to {
            let b = p.b.as_ptr().add(l * p.b_stride + at.j);
            let vector = S::load_partial(std::slice::from_raw_parts(b, at.width));
            for (m, sum) in sums.iter_mut().enumerate() {
                let x = *p.a.data.as_ptr().add((at.i + m) * p.a.row + l * p.a.col);
                *sum = S::splat(x).mul_add(vector, *sum);
            }
        }
        for (m, &sum) in sums.iter().enumerate() {
            let c = at.c.add((at.i + m) * at.c_stride + at.j);
            let c = std::slice::from_raw_parts_mut(c, at.width);
            let sum = if p.old == 0.0 { sum } else { S::load_partial(c).mul_add(S::splat(p.old), sum) };
            sum.store_partial(c);
        }
    }
}

/// `dst[j][i] = src[i][j]` for `rows` rows and `cols` columns.
pub(crate) fn transpose([rows, cols]: [usize; 2], src: &[f32], src_stride: usize, dst: &mut [f32], dst_stride: usize) {
    const B: usize = 16;
    for i in (0..rows).step_by(B) {
        let i_end = rows.min(i + B);
        for j in 0..cols {
            let to = &mut dst[j * dst_stride + i..j * dst_stride + i_end];
            for (to, i) in to.iter_mut().zip(i..) {
                *to = src[i * src_stride + j];
            }
        }
    }
}

/// Cuts memory into pieces of these lengths; each starts on a cache line where the whole does.
pub(crate) fn carve<const N: usize>(mut memory: &mut [f32], lengths: [usize; N]) -> [&mut [f32]; N] {
    lengths.map(|length| {
        let (piece, rest) = std::mem::take(&mut memory).split_at_mut(length.next_multiple_of(16));
        memory = rest;
        &mut piece[..length]
    })
}

/// The length of memory that [`carve`] cuts into pieces of these lengths.
pub(crate) fn carved(lengths: &[usize]) -> usize {
    lengths.iter().map(|length| length.next_multiple_of(16)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::cpu::Isa;
    use alluvium_core::rng::Rng;

    fn random(n: usize, name: &str) -> Vec<f32> {
        let mut rng = Rng::new(1, name);
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    fn is_in(part: Part, i: usize, j: usize) -> bool {
        match part {
            Part::All => true,
            Part::Lower => j <= i,
            Part::Upper => j >= i,
        }
    }

    #[test]
    fn products_of_every_shape_and_part_are_right() {
        let sizes = [[64, 128, 64], [64, 64, 128], [63, 17, 5], [1, 1, 1], [7, 130, 65], [128, 70, 33], [65, 65, 65]];
        let parts = [(Part::All, Part::All), (Part::Lower, Part::All), (Part::Upper, Part::Lower)];
        for (size @ [m, n, k], transposed) in sizes.iter().flat_map(|&s| [(s, false), (s, true)]) {
            for (left, result) in parts {
                let (a_stride, b_stride, c_stride) = (m.max(k) + 3, n + 2, n + 1);
                let mut a = random(m.max(k) * a_stride, "a");
                let (b, start) = (random(k * b_stride, "b"), random(m * c_stride, "c"));
                let index = |i: usize, l: usize| if transposed { l * a_stride + i } else { i * a_stride + l };
                for (i, l) in (0..m).flat_map(|i| (0..k).map(move |l| (i, l))).filter(|&(i, l)| !is_in(left, i, l)) {
                    a[index(i, l)] = 0.0;
                }
                for (isa, old) in Isa::available().into_iter().flat_map(|l| [(l, 0.0), (l, 0.5)]) {
                    let view = if transposed { Left::columns(&a, a_stride) } else { Left::rows(&a, a_stride) };
                    let p = Product { left, result, ..Product::new(size, view, &b, b_stride).onto(old) };
                    let mut c = if old == 0.0 { vec![f32::NAN; start.len()] } else { start.clone() };
                    product(isa, &p, &mut c, c_stride);
                    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).filter(|&(i, j)| is_in(result, i, j))
                    {
                        let sum: f64 = (0..k).map(|l| f64::from(a[index(i, l)]) * f64::from(b[l * b_stride + j])).sum();
                        let want = sum + if old == 0.0 { 0.0 } else { f64::from(old * start[i * c_stride + j]) };
                        let got = f64::from(c[i * c_stride + j]);
                        assert!((got - want).abs() < 3e-5, "{isa} {size:?} {left:?} {result:?}: {got} not {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_transpose_of_any_size_moves_every_element() {
        for [rows, cols] in [[1, 1], [64, 128], [63, 17], [17, 63], [5, 130]] {
            let (src_stride, dst_stride) = (cols + 1, rows + 2);
            let src = random(rows * src_stride, "src");
            let mut dst = vec![f32::NAN; cols * dst_stride];
            transpose([rows, cols], &src, src_stride, &mut dst, dst_stride);
            for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
                assert_eq!(dst[j * dst_stride + i], src[i * src_stride + j]);
            }
        }
    }
}
