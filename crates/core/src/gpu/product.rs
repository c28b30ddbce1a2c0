//! Matrix products by the GPU's own library, where its engine has one.

use super::engine::Operand;
use super::{Gpu, failed};
use crate::{DType, Error, Result, Tensor};

/// Matrices that lie in a tensor: one, or many at equal distances.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The tensor, of a floating dtype.
    pub tensor: &'a Tensor,
    /// The element that the first begins at.
    pub at: usize,
    /// Elements from line to line.
    pub stride: usize,
    /// Elements from matrix to matrix.
    pub batch_stride: usize,
    /// Whether its lines are columns; rows otherwise.
    pub by_columns: bool,
}

/// `c = alpha · a · b + beta · c` for `count` matrices: `a` is `[m, k]`, `b` `[k, n]`, `c` `[m, n]` by rows. Sums are in
/// f32 and rounded once; `a` and `b` have one dtype, `c` has theirs or f32.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// `[m, k]`
    pub a: Matrix<'a>,
    /// `[k, n]`
    pub b: Matrix<'a>,
    /// `[m, n]`, by rows.
    pub c: Matrix<'a>,
    /// `m`, `k` and `n`.
    pub sizes: [usize; 3],
    /// How many.
    pub count: usize,
    /// The factor of the product.
    pub alpha: f32,
    /// The factor of what `c` held.
    pub beta: f32,
}

impl<'a> Matrix<'a> {
    fn operand(&self) -> Result<Operand<'a>> {
        let Matrix { stride, batch_stride, by_columns, tensor, .. } = *self;
        let first = tensor.offset() + self.at * tensor.dtype().size();
        let buffer = tensor.gpu_bytes()?.buffer()?;
        Ok(Operand { buffer, first, stride, batch_stride, by_columns, dtype: tensor.dtype() })
    }

    /// Errs unless matrices of `rows` × `columns` lie within the tensor.
    fn check(&self, device: &str, [rows, columns]: [usize; 2], count: usize) -> Result<()> {
        let [lines, width] = if self.by_columns { [columns, rows] } else { [rows, columns] };
        let far = |n: usize, stride: usize| n.checked_sub(1).and_then(|last| last.checked_mul(stride));
        let reach = || far(count, self.batch_stride)?.checked_add(far(lines, self.stride)?)?.checked_add(width);
        let end = reach().and_then(|reach| reach.checked_add(self.at));
        if end.is_some_and(|end| end <= self.tensor.elements()) && (lines == 1 || self.stride >= width) {
            return Ok(());
        }
        let why = format!("a product reaches past {:?}: {count} of {rows} × {columns} from {}", self.tensor, self.at);
        Err(failed(device, why))
    }
}

impl Gpu {
    /// Whether the engine has a library of products.
    pub fn has_library_products(&self) -> bool {
        self.engine().has_products()
    }

    /// Enqueues a product by the library of the GPU's engine. `false`, and nothing is done, where the engine has none or
    /// its library does not take such a product.
    ///
    /// # Errors
    /// When a tensor is of another device or its matrices reach past its end, `c` shares memory with a factor, or the
    /// device was lost.
    pub fn library_product(&self, product: &Product<'_>) -> Result<bool> {
        let Product { a, b, c, sizes: [m, k, n], count, .. } = *product;
        if !self.has_library_products() || [m, k, n, count].contains(&0) {
            return Ok(false);
        }
        self.check_alive()?;
        let dtypes = [a, b, c].map(|matrix| matrix.tensor.dtype());
        if dtypes[0] != dtypes[1] || !dtypes[0].is_float() || ![dtypes[0], DType::F32].contains(&dtypes[2]) {
            return Ok(false);
        }
        if c.by_columns {
            return Err(Error::value("library_product", "the result is by columns, expected rows"));
        }
        for (matrix, sides) in [(a, [m, k]), (b, [k, n]), (c, [m, n])] {
            self.check_own("library_product", matrix.tensor)?;
            matrix.check(self.name(), sides, count)?;
        }
        let operands = [a.operand()?, b.operand()?, c.operand()?];
        if operands[..2].iter().any(|factor| factor.buffer.is(operands[2].buffer)) {
            return Err(failed(self.name(), "a product reads the memory that it writes; use another tensor"));
        }
        c.tensor.gpu_bytes()?.invalidate_mirror();
        self.engine().product(&operands, [m, k, n], count, [product.alpha, product.beta])
    }
}
