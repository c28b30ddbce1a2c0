//! Plans of products with the matrices of experts.

use crate::common::gpu::ALIGNMENT;

/// The kernel of a product with the matrices of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpertPlan {
    /// Each choice for itself, straight from the ids: a few tokens hardly share an expert.
    Each { lanes: usize },
    /// Sorted choices, up to `lines` choices of an expert at once: bound by reading the matrices.
    Runs { lines: usize, lanes: usize },
    /// Sorted choices, in tiles.
    Tiles,
}

/// The side of a tile.
pub(super) const TILE: usize = 64;
/// RoutedChoices that are not worth sorting.
const FEW: usize = 16;
/// RoutedChoices of an expert, on average, that do not fill a tile.
const THIN: usize = 16;
/// A large GPU runs about this many invocations at once.
const BUSY: usize = 1 << 16;

/// The sizes of a product: choices of all tokens, experts, rows of a matrix, values of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExpertSizes {
    pub(crate) choices: usize,
    pub(crate) experts: usize,
    pub(crate) outer: usize,
    pub(crate) inner: usize,
}

/// Chooses the kernel for this many choices.
pub(crate) fn plan(sizes: ExpertSizes) -> ExpertPlan {
    let ExpertSizes { choices, experts, outer, inner } = sizes;
    if choices <= FEW {
        return ExpertPlan::Each { lanes: lanes(choices * outer.div_ceil(4), inner) };
    }
    let average = choices.div_ceil(experts);
    if average > THIN {
        return ExpertPlan::Tiles;
    }
    let lines = average.next_power_of_two().clamp(4, 8);
    ExpertPlan::Runs { lines, lanes: lanes(most_jobs(sizes, lines) * outer.div_ceil(4), inner) }
}

/// The most jobs of up to `lines` choices that any routing makes; ids that name no expert are cut as if they were one
/// more.
pub(super) fn most_jobs(sizes: ExpertSizes, lines: usize) -> usize {
    sizes.choices / lines + (sizes.experts + 1).min(sizes.choices)
}

/// Invocations for the sums of four results: enough that the GPU is busy, but each has some to do, and neighbours read
/// whole sectors.
fn lanes(sets: usize, inner: usize) -> usize {
    let wanted = (BUSY / sets).max(1).next_power_of_two();
    wanted.min((inner / 8).max(1).next_power_of_two()).clamp(16, 256)
}

/// Elements of a piece of a gradient that is never kept as a whole: 64 MiB.
const PIECE: usize = 1 << 24;

/// Experts in a piece of the gradient of all matrices: all, or a number at which the `groups` partial sums of each
/// begin at an aligned offset.
pub(crate) fn piece(binding: usize, experts: usize, matrix: usize, groups: usize) -> usize {
    let most = PIECE.min(binding / 4) / matrix;
    if most >= experts {
        return experts;
    }
    let step = (1..=ALIGNMENT).find(|step| (step * groups * 4).is_multiple_of(ALIGNMENT)).unwrap_or(ALIGNMENT);
    (most / step * step).max(step).min(experts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(choices: usize, experts: usize) -> ExpertSizes {
        ExpertSizes { choices, experts, outer: 512, inner: 2_048 }
    }

    #[test]
    fn a_token_is_not_sorted_a_prompt_is_and_a_long_one_fills_tiles() {
        assert_eq!(plan(sizes(10, 512)), ExpertPlan::Each { lanes: 64 });
        assert_eq!(plan(sizes(640, 512)), ExpertPlan::Runs { lines: 4, lanes: 16 });
        assert_eq!(plan(sizes(5_120, 512)), ExpertPlan::Runs { lines: 8, lanes: 16 });
        assert_eq!(plan(sizes(40_960, 512)), ExpertPlan::Tiles);
        assert_eq!(plan(sizes(17, 1)), ExpertPlan::Tiles);
    }

    #[test]
    fn the_grid_holds_the_jobs_of_every_routing() {
        for choices in 1..70 {
            for (experts, lines) in [(1, 4), (3, 4), (5, 8), (9, 64)] {
                let most = most_jobs(sizes(choices, experts), lines);
                // as uneven as can be: all buckets but the last get one choice, the last gets the rest, and so on
                for alone in 0..=experts.min(choices) {
                    let rest = choices - alone;
                    assert!(alone + rest.div_ceil(lines) <= most, "{choices} {experts} {lines} {alone}");
                }
                let even = (0..=experts).map(|i| (choices + i) / (experts + 1)).map(|n| n.div_ceil(lines));
                assert!(even.sum::<usize>() <= most);
            }
        }
    }

    #[test]
    fn a_piece_of_a_gradient_begins_where_a_binding_may() {
        assert_eq!(piece(1 << 31, 8, 1 << 20, 1 << 14), 8);
        assert_eq!(piece(1 << 31, 512, 1 << 20, 1 << 14), 16);
        assert_eq!(piece(1 << 14, 300, 100, 6), 32);
        assert_eq!(piece(1 << 10, 300, 1 << 20, 7), 64);
    }
}
