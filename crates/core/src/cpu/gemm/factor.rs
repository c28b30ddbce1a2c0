//! The factors of a product: matrices in memory, and matrices that are generated block by block.

use crate::cpu::{Cpu, Isa};
use crate::{Error, Result};
use std::ops::Range;

/// A matrix in borrowed memory, possibly transposed.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// A row-major matrix of the first `rows · cols` elements.
    ///
    /// # Errors
    /// When the slice is shorter.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Result<Self> {
        match rows.checked_mul(cols) {
            Some(n) if n <= data.len() => Ok(MatRef { data, rows, cols, row_stride: cols, col_stride: 1 }),
            _ => Err(Error::value("matrix", format!("{} elements are too few for {rows} × {cols}", data.len()))),
        }
    }

    /// The transpose: the same memory.
    pub fn t(self) -> Self {
        MatRef { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// `rows` rows from `row`, of these `cols` columns from `col`.
    pub(super) fn part(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        let data = &self.data[row * self.row_stride + col * self.col_stride..];
        MatRef { data, rows, cols, ..self }
    }
}

/// A matrix that is stored in another form than f32 and generated block by block.
pub trait MatrixSource: Sync {
    /// Writes the columns `cols` of the rows `rows`, row-major, into `to`, which has exactly their length. `cols`
    /// starts at a multiple of 128, and ends at one or at the end of the rows.
    fn write(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, to: &mut [f32]);
}

/// Rows of a [`MatrixSource`], possibly transposed: a right factor that is never materialized as a whole.
#[derive(Clone, Copy)]
pub struct GeneratedMatrix<'a> {
    source: &'a dyn MatrixSource,
    isa: Isa,
    /// The first row and the first column in the source.
    first: [usize; 2],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) transposed: bool,
}

impl std::fmt::Debug for GeneratedMatrix<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GeneratedMatrix {} × {}", self.rows, self.cols)
    }
}

impl<'a> GeneratedMatrix<'a> {
    /// Columns that are generated at once; parts start at multiples of it.
    pub(super) const COLS: usize = 128;

    /// Whole rows of a source whose rows are `cols` long.
    pub fn new(cpu: &Cpu, source: &'a dyn MatrixSource, rows: Range<usize>, cols: usize) -> Self {
        GeneratedMatrix { source, isa: cpu.isa(), first: [rows.start, 0], rows: rows.len(), cols, transposed: false }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        GeneratedMatrix { rows: self.cols, cols: self.rows, transposed: !self.transposed, ..self }
    }

    pub(super) fn part(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        let [i, j] = if self.transposed { [col, row] } else { [row, col] };
        GeneratedMatrix {
            first: [self.first[0].saturating_add(i), self.first[1].saturating_add(j)],
            rows,
            cols,
            ..self
        }
    }

    /// Its elements, written into the start of `to`.
    pub(super) fn generate(self, to: &mut [f32]) -> MatRef<'_> {
        let GeneratedMatrix { source, isa, first: [i, j], rows, cols, transposed } = self;
        let to = &mut to[..rows * cols];
        let stored = if transposed { [cols, rows] } else { [rows, cols] };
        source.write(isa, i..i.saturating_add(stored[0]), j..j.saturating_add(stored[1]), to);
        let mat = MatRef { data: to, rows: stored[0], cols: stored[1], row_stride: stored[1], col_stride: 1 };
        if transposed { mat.t() } else { mat }
    }
}

/// The right factor of a product.
#[derive(Clone, Copy, Debug)]
pub enum Rhs<'a> {
    /// A matrix in memory.
    Dense(MatRef<'a>),
    /// A matrix that is generated block by block: each thread generates the blocks that it needs.
    Generated(GeneratedMatrix<'a>),
}

impl<'a> From<MatRef<'a>> for Rhs<'a> {
    fn from(mat: MatRef<'a>) -> Self {
        Rhs::Dense(mat)
    }
}

impl<'a> From<GeneratedMatrix<'a>> for Rhs<'a> {
    fn from(generated: GeneratedMatrix<'a>) -> Self {
        Rhs::Generated(generated)
    }
}

impl Rhs<'_> {
    /// The transpose.
    pub fn t(self) -> Self {
        match self {
            Rhs::Dense(mat) => Rhs::Dense(mat.t()),
            Rhs::Generated(generated) => Rhs::Generated(generated.t()),
        }
    }

    /// Rows and columns.
    pub(super) fn sizes(&self) -> [usize; 2] {
        match self {
            Rhs::Dense(mat) => [mat.rows, mat.cols],
            Rhs::Generated(generated) => [generated.rows, generated.cols],
        }
    }

    pub(super) fn part(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        match self {
            Rhs::Dense(mat) => Rhs::Dense(mat.part(row, rows, col, cols)),
            Rhs::Generated(generated) => Rhs::Generated(generated.part(row, rows, col, cols)),
        }
    }
}
