//! The factors of a product: matrices in memory, and matrices that are generated block by block.

use crate::cpu::{Cpu, Level};
use crate::{Error, Result};
use std::ops::Range;

/// A matrix in borrowed memory, possibly transposed.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix of the first `rows · cols` elements.
    ///
    /// # Errors
    /// When the slice is shorter.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Result<Self> {
        match rows.checked_mul(cols) {
            Some(n) if n <= data.len() => Ok(Mat { data, rows, cols, row_stride: cols, col_stride: 1 }),
            _ => Err(Error::value("matrix", format!("{} elements are too few for {rows} × {cols}", data.len()))),
        }
    }

    /// The transpose: the same memory.
    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// `rows` rows from `row`, of these `cols` columns from `col`.
    pub(super) fn part(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        let data = &self.data[row * self.row_stride + col * self.col_stride..];
        Mat { data, rows, cols, ..self }
    }
}

/// A matrix that is stored in another form than f32 and generated block by block.
pub trait Source: Sync {
    /// Writes the columns `cols` of the rows `rows`, row-major, into `to`, which has exactly their length. `cols`
    /// starts at a multiple of 128, and ends at one or at the end of the rows.
    fn write(&self, level: Level, rows: Range<usize>, cols: Range<usize>, to: &mut [f32]);
}

/// Rows of a [`Source`], possibly transposed: a right factor that is never materialized as a whole.
#[derive(Clone, Copy)]
pub struct Made<'a> {
    source: &'a dyn Source,
    level: Level,
    /// The first row and the first column in the source.
    first: [usize; 2],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) transposed: bool,
}

impl std::fmt::Debug for Made<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Made {} × {}", self.rows, self.cols)
    }
}

impl<'a> Made<'a> {
    /// Columns that are generated at once; parts start at multiples of it.
    pub(super) const COLS: usize = 128;

    /// Whole rows of a source whose rows are `cols` long.
    pub fn new(cpu: &Cpu, source: &'a dyn Source, rows: Range<usize>, cols: usize) -> Self {
        Made { source, level: cpu.level(), first: [rows.start, 0], rows: rows.len(), cols, transposed: false }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Made { rows: self.cols, cols: self.rows, transposed: !self.transposed, ..self }
    }

    pub(super) fn part(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        let [i, j] = if self.transposed { [col, row] } else { [row, col] };
        Made { first: [self.first[0].saturating_add(i), self.first[1].saturating_add(j)], rows, cols, ..self }
    }

    /// Its elements, written into the start of `to`.
    pub(super) fn generate(self, to: &mut [f32]) -> Mat<'_> {
        let Made { source, level, first: [i, j], rows, cols, transposed } = self;
        let to = &mut to[..rows * cols];
        let stored = if transposed { [cols, rows] } else { [rows, cols] };
        source.write(level, i..i.saturating_add(stored[0]), j..j.saturating_add(stored[1]), to);
        let mat = Mat { data: to, rows: stored[0], cols: stored[1], row_stride: stored[1], col_stride: 1 };
        if transposed { mat.t() } else { mat }
    }
}

/// The right factor of a product.
#[derive(Clone, Copy, Debug)]
pub enum Right<'a> {
    /// A matrix in memory.
    Here(Mat<'a>),
    /// A matrix that is generated block by block: each thread generates the blocks that it needs.
    Made(Made<'a>),
}

impl<'a> From<Mat<'a>> for Right<'a> {
    fn from(mat: Mat<'a>) -> Self {
        Right::Here(mat)
    }
}

impl<'a> From<Made<'a>> for Right<'a> {
    fn from(made: Made<'a>) -> Self {
        Right::Made(made)
    }
}

impl Right<'_> {
    /// The transpose.
    pub fn t(self) -> Self {
        match self {
            Right::Here(mat) => Right::Here(mat.t()),
            Right::Made(made) => Right::Made(made.t()),
        }
    }

    /// Rows and columns.
    pub(super) fn sizes(&self) -> [usize; 2] {
        match self {
            Right::Here(mat) => [mat.rows, mat.cols],
            Right::Made(made) => [made.rows, made.cols],
        }
    }

    pub(super) fn part(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        match self {
            Right::Here(mat) => Right::Here(mat.part(row, rows, col, cols)),
            Right::Made(made) => Right::Made(made.part(row, rows, col, cols)),
        }
    }
}
