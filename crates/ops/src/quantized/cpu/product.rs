//! Products of activation rows with packed rows: the trait of a packing's kernel, and the views that it works on.

use crate::quantized::PackedLayout;
use alluvium_core::Result;
use alluvium_core::cpu::simd::F32s;
use alluvium_core::cpu::{Buffer, Cpu};

/// The arrangement of a row's values for codes, and the product with them.
pub(super) trait PackedProduct {
    /// Codes of a lane.
    const CODES: usize;
    /// Words that the values of a lane become.
    const WORDS: usize;
    /// Whether the sums of groups count where there are no biases: with the scales.
    const RAISED: bool;

    /// Writes a row of elements; the rest stays zero.
    fn arrange<S: F32s>(x: &[f32], row: ArrangedRowMut<'_>);

    /// Adds the products of a register's lanes from lane `first` on to the sums of a tile, without the contribution of
    /// the groups' sums.
    ///
    /// # Safety
    /// The rows of the tile have these lanes, those of the matrix where `WHOLE`.
    unsafe fn add<S: F32s, const N: usize, const M: usize, const WHOLE: bool>(
        tile: &Tile<'_, S, N, M>,
        first: usize,
        totals: &mut [[S; M]; N],
    );
}

/// Rows of floats as a [`PackedProduct`] wants them.
pub(crate) struct Arranged {
    /// Each row, filled up with zeros to whole registers.
    words: Buffer<u32>,
    /// The scale of each lane.
    units: Buffer<f32>,
    /// The sum of each group.
    sums: Buffer<f32>,
    /// The number of words, units and sums of a row.
    each: [usize; 3],
}

/// The rows of [`Arranged`].
#[derive(Clone, Copy)]
pub(super) struct ArrangedRows<'a> {
    all: ArrangedRow<'a>,
    /// Of words, units and sums, how many a row has.
    each: [usize; 3],
}

impl<'a> ArrangedRows<'a> {
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> ArrangedRow<'a> {
        let (ArrangedRow { words, units, sums }, [w, u, s]) = (self.all, self.each);
        ArrangedRow { words: &words[row * w..][..w], units: &units[row * u..][..u], sums: &sums[row * s..][..s] }
    }
}

/// One row of [`Arranged`].
#[derive(Clone, Copy)]
pub(super) struct ArrangedRow<'a> {
    pub(super) words: &'a [u32],
    pub(super) units: &'a [f32],
    pub(super) sums: &'a [f32],
}

/// One row of [`Arranged`] that is being made.
pub(super) struct ArrangedRowMut<'a> {
    pub(super) words: &'a mut [u32],
    pub(super) units: &'a mut [f32],
    pub(super) sums: &'a mut [f32],
}

impl Arranged {
    /// `count` rows of zeros, with this number of words, units and sums in each.
    ///
    /// # Errors
    /// When the memory limit of the device is reached.
    pub(super) fn new(cpu: &Cpu, count: usize, each: [usize; 3]) -> Result<Self> {
        let [words, units, sums] = each.map(|each| count * each);
        Ok(Arranged { words: cpu.zeros(words)?, units: cpu.zeros(units)?, sums: cpu.zeros(sums)?, each })
    }

    /// The rows, to be written.
    pub(super) fn rows_mut(&mut self) -> impl Iterator<Item = ArrangedRowMut<'_>> {
        let [w, u, s] = self.each;
        let rows =
            self.words.chunks_exact_mut(w).zip(self.units.chunks_exact_mut(u)).zip(self.sums.chunks_exact_mut(s));
        rows.map(|((words, units), sums)| ArrangedRowMut { words, units, sums })
    }

    pub(super) fn rows(&self) -> ArrangedRows<'_> {
        let all = ArrangedRow { words: &self.words, units: &self.units, sums: &self.sums };
        ArrangedRows { all, each: self.each }
    }
}

/// The layout that all rows of a matrix share.
#[derive(Clone, Copy)]
pub(super) struct Shape<S: F32s> {
    pub(super) layout: PackedLayout,
    /// Lanes of a row.
    pub(super) lanes: usize,
    /// Words that a register's lanes take, rounded up.
    pub(super) line: usize,
    spread: S::Spread,
    /// A lane has the scale `lane >> shift`.
    shift: u32,
}

impl<S: F32s> Shape<S> {
    #[inline(always)]
    pub(super) fn new<P: PackedProduct>(layout: PackedLayout) -> Self {
        let PackedLayout { words, groups, inner, packing } = layout;
        let (lanes, each) = (inner / P::CODES, packing.group() / P::CODES);
        assert!(each.is_power_of_two() && lanes == groups * each && inner * packing.bits() <= 32 * words);
        let line = words.div_ceil(lanes.div_ceil(S::LANES));
        Shape { layout, lanes, line, spread: S::spread(each), shift: each.trailing_zeros() }
    }
}

/// `N` rows of the matrix and `M` rows of floats.
pub(super) struct Tile<'a, S: F32s, const N: usize, const M: usize> {
    /// The words of the `N` rows.
    codes: &'a [u32],
    /// Their scales.
    scales: &'a [f32],
    pub(super) rows: [ArrangedRow<'a>; M],
    shape: &'a Shape<S>,
}

impl<'a, S: F32s, const N: usize, const M: usize> Tile<'a, S, N, M> {
    /// A tile of `N` rows of codes with their scales, and `M` rows of activations.
    #[inline(always)]
    pub(super) fn new(shape: &'a Shape<S>, codes: &'a [u32], scales: &'a [f32], rows: [ArrangedRow<'a>; M]) -> Self {
        assert!(codes.len() == N * shape.layout.words && scales.len() == N * shape.layout.groups);
        Tile { codes, scales, rows, shape }
    }

    /// The words of row `n`.
    #[inline(always)]
    pub(super) fn row(&self, n: usize) -> &[u32] {
        let words = self.shape.layout.words;
        // constant where loops over rows are unrolled
        assert!(n < N);
        // SAFETY: `Tile::new` checked that there are `N` rows of words.
        unsafe { self.codes.get_unchecked(n * words..(n + 1) * words) }
    }

    /// The scales of the lanes from `first` on in row `n`; those past its end may be anything.
    ///
    /// # Safety
    /// Where `WHOLE`, the row has these lanes.
    #[inline(always)]
    pub(super) unsafe fn scales<const WHOLE: bool>(&self, n: usize, first: usize) -> S {
        let (groups, at) = (self.shape.layout.groups, first >> self.shape.shift);
        assert!(n < N);
        if WHOLE {
            // SAFETY: `Tile::new` checked that there are `N` rows of scales, and the caller promises that the row has
            // these lanes.
            return unsafe { S::load_spread(self.scales.as_ptr().add(n * groups + at), self.shape.spread) };
        }
        let mut few = [0.0; 16];
        few.iter_mut().zip(&self.scales[n * groups + at..(n + 1) * groups]).for_each(|(to, scale)| *to = *scale);
        // SAFETY: no register has more lanes.
        unsafe { S::load_spread(few.as_ptr(), self.shape.spread) }
    }
}
