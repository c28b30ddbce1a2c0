//! Which kernel multiplies with a quantized matrix, and in what pieces.

/// The kernel that multiplies rows with a quantized matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// A few rows: bound by reading the words, which are read once.
    Dots(DotPlan),
    /// Many rows: the tiles of a general product, which take codes apart as they are brought.
    Product,
}

/// A few rows against many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DotPlan {
    /// Room for this many rows.
    pub(crate) room: usize,
    /// Invocations that share the sums of four outputs: a power of 4, as sums are added up four by four.
    pub(crate) lanes: usize,
}

/// A large GPU runs about this many invocations at once.
const BUSY: usize = 1 << 16;
/// Elements of a piece of a gradient that is never kept as a whole: 64 MiB.
const PIECE: usize = 1 << 24;

/// Chooses the kernel for `rows` rows, of which `few` are few, of `inner` values and this many outputs. The order of a
/// row's sums does not depend on the number of rows while they are few.
pub(crate) fn path(rows: usize, few: usize, outer: usize, inner: usize) -> Path {
    if rows > few {
        return Path::Product;
    }
    // enough loads in flight, but each invocation has two of eight elements; neighbours read whole sectors
    let enough = |&lanes: &usize| lanes * outer.div_ceil(4) >= BUSY || 4 * lanes > inner / 16;
    let lanes = [16, 64].into_iter().find(enough).unwrap_or(256);
    Path::Dots(DotPlan { room: rows.next_power_of_two(), lanes })
}

/// Rows in a piece of a gradient: all, or a number at which each piece begins at an aligned offset.
pub(crate) fn panel(binding: usize, outer: usize, inner: usize) -> usize {
    let most = PIECE.min(binding / 4) / inner;
    if most >= outer { outer } else { (most / 256 * 256).max(256).min(outer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_one_by_one_are_bound_by_reading_and_a_prompt_by_products() {
        assert_eq!(path(1, 8, 4_096, 4_096), Path::Dots(DotPlan { room: 1, lanes: 64 }));
        assert_eq!(path(5, 8, 4_096, 4_096), Path::Dots(DotPlan { room: 8, lanes: 64 }));
        assert_eq!(path(9, 8, 4_096, 4_096), Path::Product);
        assert_eq!(path(20, 32, 4_096, 4_096), Path::Dots(DotPlan { room: 32, lanes: 64 }));
    }

    #[test]
    fn few_outputs_are_shared_by_many_invocations_and_a_vocabulary_by_few() {
        assert_eq!(path(1, 8, 64, 4_096), Path::Dots(DotPlan { room: 1, lanes: 256 }));
        assert_eq!(path(1, 8, 64, 2_048), Path::Dots(DotPlan { room: 1, lanes: 64 }));
        assert_eq!(path(1, 8, 151_936, 2_048), Path::Dots(DotPlan { room: 1, lanes: 16 }));
        assert_eq!(path(1, 8, 3, 16), Path::Dots(DotPlan { room: 1, lanes: 16 }));
    }

    #[test]
    fn a_piece_fits_a_binding_and_begins_where_one_may() {
        assert_eq!(panel(1 << 32, 1_000, 1_000), 1_000);
        assert_eq!(panel(1 << 32, 151_936, 4_096), 4_096);
        assert_eq!(panel(1 << 22, 10_000, 1_000), 1_024);
        assert_eq!(panel(1 << 12, 10_000, 1_000), 256);
    }
}
