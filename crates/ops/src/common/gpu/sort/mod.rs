//! Sorts ids on the GPU, each with its position, without reading them back.

use crate::common::gpu::to_u32s;
use alluvium_core::gpu::{Bind, Gpu, Groups, Kernel, Launch};
use alluvium_core::{DType, Result, Tensor};

const SORT: &str = include_str!("sort.wgsl");

static BY_FIRST: Kernel = crate::common::gpu::kernel("ids by their lowest digit", &[SORT, include_str!("ids.wgsl")]);
static BY_NEXT: Kernel = crate::common::gpu::kernel("ids by their next digit", &[SORT, include_str!("pairs.wgsl")]);
static STARTS: Kernel = crate::common::gpu::kernel("starts of sorted ids", &[include_str!("starts.wgsl")]);

/// Invocations of a workgroup, and values that a digit has at most.
const WORKGROUP: usize = 256;
/// Blocks at most: each adds up what all of them counted.
const BLOCKS: usize = 256;
/// The least number of ids in a block, in units of `WORKGROUP`.
const STEPS: usize = 4;

/// Ids in order, those that are the same by their places.
pub(crate) struct Sorted {
    /// `[N, 2]`: an id and its place. Those that name none are the last.
    pub(crate) pairs: Tensor,
    /// `[V + 1]`: how many pairs come before those of each id; they end where the next id's begin.
    pub(crate) starts: Tensor,
}

/// The ids below `below` with their places.
///
/// # Errors
/// When memory is used up, or the ids are larger than a binding.
pub(crate) fn sort(gpu: &Gpu, ids: &Tensor, below: usize) -> Result<Sorted> {
    let count = ids.elements();
    let steps = count.div_ceil(WORKGROUP * BLOCKS).max(STEPS);
    let blocks = count.div_ceil(WORKGROUP * steps);
    let counts = gpu.empty([blocks, WORKGROUP], DType::U32)?;
    let (mut kernel, mut pairs) = (&BY_FIRST, ids.detach());
    for (shift, mask) in digits(below) {
        let numbers = to_u32s([count, below, shift, mask, steps, blocks])?;
        let to = gpu.empty([count, 2], DType::U32)?;
        run(gpu, (kernel, "count"), &[&pairs, &counts], &numbers, blocks)?;
        run(gpu, (kernel, "scatter"), &[&pairs, &counts, &to], &numbers, blocks)?;
        (kernel, pairs) = (&BY_NEXT, to);
    }
    let starts = gpu.empty([below + 1], DType::U32)?;
    let numbers = to_u32s([count, below])?;
    run(gpu, (&STARTS, "main"), &[&pairs, &starts], &numbers, (below + 1).div_ceil(WORKGROUP))?;
    Ok(Sorted { pairs, starts })
}

fn run(
    gpu: &Gpu,
    (kernel, entry): (&'static Kernel, &'static str),
    tensors: &[&Tensor],
    params: &[u32],
    groups: usize,
) -> Result<()> {
    let binds: Vec<Bind<'_>> = tensors.iter().map(|tensor| Bind::All(tensor)).collect();
    gpu.launch(&Launch {
        kernel,
        entry,
        constants: &[],
        stored: &[],
        binds: &binds,
        params: bytemuck::cast_slice(params),
        groups: Groups::Line(groups),
    })
}

/// The digits of values up to `most`, as even as they can be: how far to shift each, and a mask of its bits.
fn digits(most: usize) -> impl Iterator<Item = (usize, usize)> {
    let bits = (usize::BITS - most.leading_zeros()) as usize;
    let each = bits.div_ceil(bits.div_ceil(WORKGROUP.ilog2() as usize));
    (0..bits).step_by(each).map(move |shift| (shift, (1 << each) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::rng::Rng;

    #[test]
    fn digits_have_all_bits_of_the_largest_number_and_are_as_few_and_as_even_as_can_be() {
        let shifts = |most| digits(most).map(|(shift, mask)| (shift, mask.count_ones())).collect::<Vec<_>>();
        assert_eq!(shifts(1), [(0, 1)]);
        assert_eq!(shifts(255), [(0, 8)]);
        assert_eq!(shifts(256), [(0, 5), (5, 5)]);
        assert_eq!(shifts(151_936), [(0, 6), (6, 6), (12, 6)]);
        assert_eq!(shifts(u32::MAX as usize), [(0, 8), (8, 8), (16, 8), (24, 8)]);
    }

    #[test]
    fn ids_are_sorted_as_on_the_cpu_and_out_of_range_ones_come_last() {
        let Some(gpu) = Gpu::builder().poison().open_for_test().unwrap() else { return };
        let mut rng = Rng::new(1, "ids");
        // no whole blocks, more than one, and blocks of more steps than the least
        let counts = [1, 2, 255, 256, 257, 1_024, 1_025, 5_000, WORKGROUP * BLOCKS * STEPS + 300];
        for count in counts {
            for below in [1, 2, 255, 256, 257, 40_000, 151_936] {
                let spread = |rng: &mut Rng| rng.below(below + 1 + below / 8) as u32;
                let kinds: [Vec<u32>; 3] = [
                    (0..count).map(|_| spread(&mut rng)).collect(),
                    vec![below as u32 - 1; count],
                    (0..count as u32).rev().map(|i| if i % 5 == 0 { u32::MAX } else { i }).collect(),
                ];
                for ids in kinds {
                    let x = Tensor::from_slice(&ids, [count], &gpu.clone().into()).unwrap();
                    let sorted = sort(&gpu, &x, below).unwrap();
                    let mut want: Vec<(u32, u32)> = ids.iter().map(|&id| id.min(below as u32)).zip(0..).collect();
                    want.sort();
                    let starts: Vec<u32> =
                        (0..=below as u32).map(|id| want.partition_point(|pair| pair.0 < id) as u32).collect();
                    let pairs = sorted.pairs.to_vec::<u32>().unwrap();
                    assert!(pairs.iter().eq(want.iter().flat_map(|(id, at)| [id, at])), "{count} below {below}");
                    assert_eq!(sorted.starts.to_vec::<u32>().unwrap(), starts, "{count} below {below}");
                }
            }
        }
    }
}
