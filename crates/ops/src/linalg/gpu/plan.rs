//! Which kernel computes a product, and in what pieces.

/// The sizes of a product, and how many of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GemmSizes {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    pub(crate) count: usize,
}

/// The kernel of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GemmPlan {
    /// A few lines of one side against all lines of the other: bound by reading the other.
    Gemv(Gemv),
    /// Tiles of `side` × `side` results, the sum of each cut into `splits` runs of `part`.
    Tiles { side: usize, part: usize, splits: usize },
    /// The same tiles by cooperative matrices.
    Matrices { side: usize, part: usize, splits: usize },
}

/// A few lines against many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gemv {
    /// Which side has few lines.
    pub(super) side: GemvSide,
    /// Room for this many of them.
    pub(super) lines: usize,
    /// Invocations that share a sum.
    pub(super) lanes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GemvSide {
    Left,
    Right,
}

/// The layout of the longer side and the matrix units that may be used. A plan depends on these and on the sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OperandStorage {
    /// Whether k runs along the memory of each side.
    pub(super) k_inner: [bool; 2],
    /// Whether the right side is quantized: then it cannot be the few lines.
    pub(super) packed: bool,
    /// The side of the tiles that cooperative matrices compute here, if they do.
    pub(super) matrices: Option<usize>,
    /// Rows that count as few where a layer multiplies them with its weights.
    pub(super) few_rows: usize,
}

/// Workgroups of 256 invocations that occupy a large GPU.
const BUSY: usize = 256;
/// Lines that are few.
const FEW: usize = 8;

/// The elements of k that a tile holds.
pub(super) fn depth(side: usize) -> usize {
    if side == 128 { 16 } else { 32 }
}

pub(super) fn plan(sizes: GemmSizes, stored: OperandStorage) -> GemmPlan {
    let GemmSizes { m, k, n, count } = sizes;
    // tokens times weights: the sums of a row do not depend on how many rows there are
    let is_layer = count == 1 && stored.k_inner == [true; 2] && m <= stored.few_rows;
    if m <= FEW || is_layer || (n <= FEW && !stored.packed) {
        let (side, few, many) =
            if m <= n || is_layer || stored.packed { (GemvSide::Left, m, n) } else { (GemvSide::Right, n, m) };
        let along_k = stored.k_inner[if side == GemvSide::Left { 1 } else { 0 }];
        return GemmPlan::Gemv(Gemv {
            side,
            lines: few.next_power_of_two(),
            lanes: lanes(many.div_ceil(4) * count, k, along_k),
        });
    }
    let tiles = |side: usize| m.div_ceil(side) * n.div_ceil(side) * count;
    if let Some(side) = stored.matrices.filter(|&side| m.min(n) >= side / 2 && k >= 32) {
        let (part, splits) = split(tiles(side), k);
        return GemmPlan::Matrices { side, part, splits };
    }
    // a large tile reads less, a small one wastes less at the edges and makes more workgroups
    let wasted = 4 * tiles(128) > 5 * tiles(64).div_ceil(4);
    let side = if tiles(128) >= BUSY && !wasted { 128 } else { 64 };
    let (part, splits) = split(tiles(side), k);
    GemmPlan::Tiles { side, part, splits }
}

/// Cuts long sums of few tiles into runs, so that the whole GPU works on them.
fn split(tiles: usize, k: usize) -> (usize, usize) {
    const SHORTEST: usize = 256;
    let wanted = (BUSY / tiles).clamp(1, (k / SHORTEST).max(1));
    let part = k.div_ceil(wanted).next_multiple_of(32);
    (part, k.div_ceil(part))
}

/// Invocations for the sum of four results: enough loads in flight for the GPU, and some work for each.
fn lanes(sets: usize, k: usize, along_k: bool) -> usize {
    let wanted = (BUSY * 256 / sets).max(1).next_power_of_two();
    // neighbours read along k, or at least 64 bytes across it
    let most = if along_k { 256 } else { 64 };
    let least = if along_k { 16 } else { 4 };
    wanted.min((k / 8).max(1).next_power_of_two()).clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEITHER: OperandStorage =
        OperandStorage { k_inner: [true, true], packed: false, matrices: None, few_rows: 8 };

    fn sizes(m: usize, k: usize, n: usize) -> GemmSizes {
        GemmSizes { m, k, n, count: 1 }
    }

    #[test]
    fn a_token_or_a_single_output_is_bound_by_reading_the_other_side() {
        let decode = plan(sizes(1, 2_048, 8_192), NEITHER);
        assert_eq!(decode, GemmPlan::Gemv(Gemv { side: GemvSide::Left, lines: 1, lanes: 32 }));
        let output = plan(sizes(5_000, 70, 3), NEITHER);
        assert_eq!(output, GemmPlan::Gemv(Gemv { side: GemvSide::Right, lines: 4, lanes: 16 }));
        let across = OperandStorage { k_inner: [true, false], ..NEITHER };
        assert_eq!(
            plan(sizes(8, 4_096, 64), across),
            GemmPlan::Gemv(Gemv { side: GemvSide::Left, lines: 8, lanes: 64 })
        );
    }

    #[test]
    fn tokens_times_weights_are_summed_in_one_order_whatever_their_number() {
        let stored = OperandStorage { few_rows: 32, ..NEITHER };
        for (k, n) in [(70, 3), (512, 16), (2_048, 8_192)] {
            let GemmPlan::Gemv(alone) = plan(sizes(1, k, n), stored) else { panic!("{k} {n}") };
            for m in 2..=32_usize {
                let together = Gemv { lines: m.next_power_of_two(), ..alone };
                assert_eq!(plan(sizes(m, k, n), stored), GemmPlan::Gemv(together), "{m} {k} {n}");
            }
        }
        let gradient = OperandStorage { k_inner: [false, false], ..stored };
        assert!(matches!(plan(sizes(9, 512, 64), gradient), GemmPlan::Tiles { .. }));
    }

    #[test]
    fn a_quantized_side_is_never_the_few_lines() {
        let packed = OperandStorage { packed: true, ..NEITHER };
        assert!(matches!(plan(sizes(8, 512, 3), packed), GemmPlan::Gemv(Gemv { side: GemvSide::Left, lines: 8, .. })));
        assert!(matches!(plan(sizes(9, 512, 3), packed), GemmPlan::Tiles { side: 64, .. }));
    }

    #[test]
    fn large_products_take_large_tiles_and_small_ones_keep_the_gpu_busy() {
        let whole = |side, k| GemmPlan::Tiles { side, part: k, splits: 1 };
        assert_eq!(plan(sizes(4_096, 4_096, 4_096), NEITHER), whole(128, 4_096));
        assert_eq!(plan(sizes(1_024, 1_024, 1_024), NEITHER), whole(64, 1_024));
        // 128 rows of large tiles would compute nearly twice what is needed
        assert_eq!(plan(sizes(130, 512, 50_000), NEITHER), whole(64, 512));
    }

    #[test]
    fn a_long_sum_of_few_results_is_cut_into_whole_tiles() {
        for (m, k, n) in [(64, 100_000, 64), (9, 2_049, 1_031), (100, 257, 100), (1_000, 8_191, 500)] {
            let GemmPlan::Tiles { side, part, splits } = plan(sizes(m, k, n), NEITHER) else { panic!("{m} {k} {n}") };
            assert!(part.is_multiple_of(depth(side)), "{part}");
            assert!(part * splits >= k && part * (splits - 1) < k, "{part} {splits}");
        }
        let GemmPlan::Tiles { splits, .. } = plan(sizes(64, 100_000, 64), NEITHER) else { panic!() };
        assert!(splits > 100, "{splits}");
    }
}
