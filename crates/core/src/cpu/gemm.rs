//! Matrix products: threads take blocks of the result; a single row takes a separate path.

mod block;
mod factor;

use super::Cpu;
use crate::{Error, Result};
use block::{Factors, multiply};
pub use factor::{GeneratedMatrix, MatRef, MatrixSource, Rhs};
use rayon::prelude::*;

/// Threads take rows in multiples of this, and columns in multiples of twice as many.
const TILES: usize = 16;
/// Multiply-adds that take as long as copying one element.
const COPY: usize = 48;
/// Multiply-adds below which one thread computes a product.
const SMALL: usize = 64 * 64 * 64;

/// `c ← alpha · a · b + beta · c`, with `c` row-major, `a.rows × b.cols`. With `beta` = 0, `c` is not read.
///
/// Threads take blocks of the result and never share a sum: the bits depend on the shapes alone.
///
/// # Errors
/// When the inner sizes differ or `c` has another size.
pub fn gemm<'a>(cpu: &Cpu, alpha: f32, a: MatRef<'_>, b: impl Into<Rhs<'a>>, beta: f32, c: &mut [f32]) -> Result<()> {
    let b = b.into();
    let (m, k, [steps, n]) = (a.rows, a.cols, b.sizes());
    if steps != k || m.checked_mul(n) != Some(c.len()) {
        let why = format!("{m} × {k} by {steps} × {n} into {} elements", c.len());
        return Err(Error::value("gemm", why));
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    if let Rhs::Dense(b) = b
        && (m == 1 && a.col_stride == 1 && alpha == 1.0 && beta == 0.0)
    {
        return one_row(cpu, &a.data[..k], b, c);
    }
    if k == 0 {
        c.iter_mut().for_each(|c| *c = if beta == 0.0 { 0.0 } else { *c * beta });
        return Ok(());
    }
    let (threads, isa) = (cpu.threads(), cpu.isa());
    let (whole, factors) = (Target { start: c.as_mut_ptr(), stride: n }, Factors { alpha, beta });
    if threads == 1 || c.len().saturating_mul(k) < SMALL {
        multiply(isa, a, b, whole, factors);
        return Ok(());
    }
    let [rows, cols] = share([m, n], threads, matches!(b, Rhs::Generated(_)));
    let across = n.div_ceil(cols);
    cpu.run(|| {
        (0..m.div_ceil(rows) * across).into_par_iter().for_each(|i| {
            let (i, j) = (i / across * rows, i % across * cols);
            let (rows, cols) = (rows.min(m - i), cols.min(n - j));
            multiply(isa, a.part(i, rows, 0, k), b.part(0, k, j, cols), whole.at(i * n + j), factors);
        });
    });
    Ok(())
}

/// Rows and columns of a thread's block. A thread copies its rows of the left factor and its columns of the right one,
/// which takes twice as long if they are generated first; blocks are as square as that and the thread count allow.
fn share([m, n]: [usize; 2], threads: usize, generated: bool) -> [usize; 2] {
    let (multiple, copy) = if generated { (GeneratedMatrix::COLS, 2 * COPY) } else { (2 * TILES, COPY) };
    let block = |down: usize| {
        let rows = m.div_ceil(down).next_multiple_of(TILES).min(m);
        let cols = n.div_ceil(threads / down).next_multiple_of(multiple).min(n);
        [rows, cols]
    };
    let time = |&[rows, cols]: &[usize; 2]| rows * cols + COPY * rows + copy * cols;
    (1..=threads).rev().map(block).min_by_key(time).unwrap_or([m, n])
}

/// The memory of a block's result: rows of `c` that are `stride` apart. Blocks of one product never overlap.
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

/// A row times a matrix, bound by reading the matrix once: decoding spends its time here.
fn one_row(cpu: &Cpu, a: &[f32], b: MatRef<'_>, c: &mut [f32]) -> Result<()> {
    let isa = cpu.isa();
    let n = b.cols;
    if b.row_stride == 1 {
        let grain = cpu.grain(n, b.rows);
        let stride = b.col_stride;
        cpu.run(|| {
            c.par_iter_mut().enumerate().with_min_len(grain).for_each(|(j, c)| {
                *c = dot(isa, a, &b.data[j * stride..][..a.len()]);
            });
        });
    } else {
        let cols = cpu.grain(n, b.rows).next_multiple_of(16);
        let stride = b.row_stride;
        cpu.run(|| {
            c.par_chunks_mut(cols).enumerate().for_each(|(i, c)| {
                c.fill(0.0);
                for (k, &a) in a.iter().enumerate() {
                    axpy(isa, a, &b.data[k * stride + i * cols..][..c.len()], c);
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
            sums[0] = S::load_partial(&a[i..end]).mul_add(S::load_partial(&b[i..end]), sums[0]);
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
                S::load_partial(x).mul_add(a, S::load_partial(y)).store_partial(y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::rng::Rng;

    fn random(n: usize, name: &str) -> Vec<f32> {
        let mut rng = Rng::new(1, name);
        (0..n).map(|_| rng.normal() as f32).collect()
    }

    /// A generated matrix whose elements are in memory.
    struct Stored<'a> {
        data: &'a [f32],
        cols: usize,
    }

    impl MatrixSource for Stored<'_> {
        fn write(&self, _: Isa, rows: std::ops::Range<usize>, cols: std::ops::Range<usize>, to: &mut [f32]) {
            assert!(cols.start.is_multiple_of(128) && (cols.end.is_multiple_of(128) || cols.end == self.cols));
            assert_eq!(to.len(), rows.len() * cols.len());
            for (row, to) in rows.zip(to.chunks_exact_mut(cols.len())) {
                to.copy_from_slice(&self.data[row * self.cols..][cols.clone()]);
            }
        }
    }

    fn check(m: usize, n: usize, k: usize, transposed: [bool; 2], threads: usize) {
        let cpu = Cpu::builder().threads(threads).open().unwrap();
        let (a, b) = (random(m * k, "a"), random(k * n, "b"));
        let start = random(m * n, "c");
        let at = |i: usize, l: usize| f64::from(if transposed[0] { a[l * m + i] } else { a[i * k + l] });
        let bt = |l: usize, j: usize| f64::from(if transposed[1] { b[j * k + l] } else { b[l * n + j] });
        let ma = if transposed[0] { MatRef::new(&a, k, m).unwrap().t() } else { MatRef::new(&a, m, k).unwrap() };
        let mb = if transposed[1] { MatRef::new(&b, n, k).unwrap().t() } else { MatRef::new(&b, k, n).unwrap() };
        let stored = if transposed[1] { Stored { data: &b, cols: k } } else { Stored { data: &b, cols: n } };
        let generated = GeneratedMatrix::new(&cpu, &stored, 0..b.len() / stored.cols, stored.cols);
        for (alpha, beta) in [(1.0, 0.0), (0.5, 2.0)] {
            let fresh = || if beta == 0.0 { vec![f32::NAN; m * n] } else { start.clone() };
            let [mut c, mut again] = [fresh(), fresh()];
            gemm(&cpu, alpha, ma, mb, beta, &mut c).unwrap();
            gemm(&cpu, alpha, ma, if transposed[1] { generated.t() } else { generated }, beta, &mut again).unwrap();
            // a single row has a path of its own, in another order
            assert!(m == 1 || c == again, "{m}×{n}×{k} {transposed:?}: generated");
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
            check(70, 700, 300, transposed, 8);
        }
    }

    #[test]
    fn blocks_are_as_square_as_copying_wants_them_and_there_is_one_for_every_thread() {
        assert_eq!(share([1024, 256], 2, false), [512, 256]);
        assert_eq!(share([256, 1024], 2, false), [256, 512]);
        assert_eq!(share([512, 512], 2, false), [256, 512]);
        assert_eq!(share([1024, 1024], 16, false), [256, 256]);
        assert_eq!(share([128, 4096], 16, true), [128, 256]);
        assert_eq!(share([5, 7], 3, true), [5, 7]);
        for threads in [1, 3, 5, 6, 7, 12] {
            let [rows, cols] = share([1000, 3000], threads, false);
            let blocks = 1000_usize.div_ceil(rows) * 3000_usize.div_ceil(cols);
            assert!(blocks <= threads && 5 * blocks >= 4 * threads, "{threads}: {rows} × {cols}");
        }
    }

    #[test]
    fn the_bits_do_not_depend_on_the_number_of_threads() {
        let (a, b) = (random(500 * 300, "a"), random(300 * 200, "b"));
        let run = |threads, m: usize| {
            let cpu = Cpu::builder().threads(threads).open().unwrap();
            let mut c = random(m * 200, "c");
            let (a, b) = (MatRef::new(&a, m, 300).unwrap(), MatRef::new(&b, 300, 200).unwrap());
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
        let a = MatRef::new(&data, 2, 3).unwrap();
        let error = gemm(&cpu, 1.0, a, a, 0.0, &mut [0.0; 4]).unwrap_err().to_string();
        assert_eq!(error, "gemm: 2 × 3 by 2 × 3 into 4 elements");
        assert!(MatRef::new(&data, 3, 3).is_err());
    }
}
