//! Products of matrices: threads take rows or columns, and a single row has a path of its own.

mod block;

use super::Cpu;
use crate::{Error, Result};
use block::{Factors, multiply};
use rayon::prelude::*;

/// A matrix in borrowed memory, possibly transposed.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// The first `rows · cols` numbers, row-major.
    ///
    /// # Errors
    /// When the slice is shorter.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Result<Self> {
        match rows.checked_mul(cols) {
            Some(n) if n <= data.len() => Ok(Mat { data, rows, cols, row_stride: cols, col_stride: 1 }),
            _ => Err(Error::value("matrix", format!("{} numbers are too few for {rows} × {cols}", data.len()))),
        }
    }

    /// The transpose: the same memory.
    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// `rows` rows from `row`, of these `cols` columns from `col`.
    fn part(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        let data = &self.data[row * self.row_stride + col * self.col_stride..];
        Mat { data, rows, cols, ..self }
    }
}

/// Threads take rows or columns in multiples of this.
const TILES: usize = 16;
/// Numbers of a product below which one thread does it.
const SMALL: usize = 64 * 64 * 64;

/// `c ← alpha · a · b + beta · c`, with `c` row-major, `a.rows × b.cols`. With `beta` = 0, `c` is not read.
///
/// Threads take blocks of rows or of columns and never share a sum: the bits depend on the shapes alone.
///
/// # Errors
/// When the inner sizes differ or `c` has another size.
pub fn gemm(cpu: &Cpu, alpha: f32, a: Mat<'_>, b: Mat<'_>, beta: f32, c: &mut [f32]) -> Result<()> {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    if b.rows != k || c.len() != m * n {
        let why = format!("{m} × {k} by {} × {n} into {} numbers", b.rows, c.len());
        return Err(Error::value("gemm", why));
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    if m == 1 && a.col_stride == 1 && alpha == 1.0 && beta == 0.0 {
        return one_row(cpu, &a.data[..k], b, c);
    }
    if k == 0 {
        c.iter_mut().for_each(|c| *c = if beta == 0.0 { 0.0 } else { *c * beta });
        return Ok(());
    }
    let (threads, level) = (cpu.threads(), cpu.level());
    let (whole, factors) = (Target { start: c.as_mut_ptr(), stride: n }, Factors { alpha, beta });
    if threads == 1 || m * n * k < SMALL {
        multiply(level, a, b, whole, factors);
        return Ok(());
    }
    // each thread packs what it does not split, so the longer side is split
    let side = m.max(n);
    let each = side.div_ceil(threads).next_multiple_of(TILES);
    cpu.run(|| {
        (0..side.div_ceil(each)).into_par_iter().for_each(|i| {
            let (first, len) = (i * each, each.min(side - i * each));
            if m >= n {
                multiply(level, a.part(first, len, 0, k), b, whole.at(first * n), factors);
            } else {
                multiply(level, a, b.part(0, k, first, len), whole.at(first), factors);
            }
        });
    });
    Ok(())
}

/// Where a block's result goes: rows of `c` that are `stride` apart. Blocks of one product never overlap.
#[derive(Clone, Copy)]
struct Target {
    start: *mut f32,
    stride: usize,
}

// SAFETY: `gemm` gives each thread rows or columns of its own.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    fn at(self, offset: usize) -> Self {
        Target { start: self.start.wrapping_add(offset), ..self }
    }
}

/// A row times a matrix is bound by reading the matrix once: decoding spends its time here.
fn one_row(cpu: &Cpu, a: &[f32], b: Mat<'_>, c: &mut [f32]) -> Result<()> {
    let level = cpu.level();
    let n = b.cols;
    if b.row_stride == 1 {
        let grain = cpu.grain(n, b.rows);
        let stride = b.col_stride;
        cpu.run(|| {
            c.par_iter_mut().enumerate().with_min_len(grain).for_each(|(j, c)| {
                *c = dot(level, a, &b.data[j * stride..][..a.len()]);
            });
        });
    } else {
        let cols = cpu.grain(n, b.rows).next_multiple_of(16);
        let stride = b.row_stride;
        cpu.run(|| {
            c.par_chunks_mut(cols).enumerate().for_each(|(i, c)| {
                c.fill(0.0);
                for (k, &a) in a.iter().enumerate() {
                    axpy(level, a, &b.data[k * stride + i * cols..][..c.len()], c);
                }
            });
        });
    }
    Ok(())
}

crate::simd! {
    /// `Σ a·b`, in a fixed order.
    pub(crate) fn dot<S>(a: &[f32], b: &[f32]) -> f32 {
        let n = a.len().min(b.len());
        let mut sums = [S::splat(0.0); 4];
        let step = 4 * S::LANES;
        let whole = n - n % step;
        for i in (0..whole).step_by(step) {
            for (j, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(&a[i + j * S::LANES..]).mul_add(S::load(&b[i + j * S::LANES..]), *sum);
            }
        }
        for i in (whole..n).step_by(S::LANES) {
            let end = n.min(i + S::LANES);
            sums[0] = S::load_head(&a[i..end]).mul_add(S::load_head(&b[i..end]), sums[0]);
        }
        ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum()
    }

    /// `y += a·x`.
    pub(crate) fn axpy<S>(a: f32, x: &[f32], y: &mut [f32]) {
        let a = S::splat(a);
        for (x, y) in x.chunks(S::LANES).zip(y.chunks_mut(S::LANES)) {
            if y.len() == S::LANES {
                S::load(x).mul_add(a, S::load(y)).store(y);
            } else {
                S::load_head(x).mul_add(a, S::load_head(y)).store_head(y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn random(n: usize, name: &str) -> Vec<f32> {
        let mut rng = Rng::new(1, name);
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    fn check(m: usize, n: usize, k: usize, transposed: [bool; 2], threads: usize) {
        let cpu = Cpu::builder().threads(threads).open().unwrap();
        let (a, b) = (random(m * k, "a"), random(k * n, "b"));
        let start = random(m * n, "c");
        let at = |i: usize, l: usize| f64::from(if transposed[0] { a[l * m + i] } else { a[i * k + l] });
        let bt = |l: usize, j: usize| f64::from(if transposed[1] { b[j * k + l] } else { b[l * n + j] });
        let ma = if transposed[0] { Mat::new(&a, k, m).unwrap().t() } else { Mat::new(&a, m, k).unwrap() };
        let mb = if transposed[1] { Mat::new(&b, n, k).unwrap().t() } else { Mat::new(&b, k, n).unwrap() };
        for (alpha, beta) in [(1.0, 0.0), (0.5, 2.0)] {
            let mut c = if beta == 0.0 { vec![f32::NAN; m * n] } else { start.clone() };
            gemm(&cpu, alpha, ma, mb, beta, &mut c).unwrap();
            for (i, row) in c.chunks(n).enumerate() {
                for (j, &got) in row.iter().enumerate() {
                    let sum: f64 = (0..k).map(|l| at(i, l) * bt(l, j)).sum();
                    let old = if beta == 0.0 { 0.0 } else { f64::from(beta) * f64::from(start[i * n + j]) };
                    let want = f64::from(alpha) * sum + old;
                    let bound = 1e-6 * (k as f64).sqrt().max(1.0) * 8.0;
                    assert!((f64::from(got) - want).abs() < bound, "{m}×{n}×{k} {transposed:?}: {got} not {want}");
                }
            }
        }
    }

    #[test]
    fn products_of_every_kind_of_shape_are_right() {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            for (m, n, k) in
                [(1, 1, 1), (1, 130, 67), (1, 3000, 64), (3, 300, 400), (65, 63, 70), (130, 129, 65), (9, 515, 258)]
            {
                check(m, n, k, transposed, 3);
            }
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let (a, b) = (random(500 * 300, "a"), random(300 * 200, "b"));
        let run = |threads, m: usize| {
            let cpu = Cpu::builder().threads(threads).open().unwrap();
            let mut c = random(m * 200, "c");
            let (a, b) = (Mat::new(&a, m, 300).unwrap(), Mat::new(&b, 300, 200).unwrap());
            gemm(&cpu, 0.7, a, b, 1.0, &mut c).unwrap();
            c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        for m in [5, 100, 500] {
            assert!(run(1, m) == run(2, m) && run(2, m) == run(5, m));
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_an_error() {
        let cpu = Cpu::shared();
        let data = [0.0; 6];
        let a = Mat::new(&data, 2, 3).unwrap();
        let error = gemm(&cpu, 1.0, a, a, 0.0, &mut [0.0; 4]).unwrap_err().to_string();
        assert_eq!(error, "gemm: 2 × 3 by 2 × 3 into 4 numbers");
        assert!(Mat::new(&data, 3, 3).is_err());
    }
}
