//! Codes of eight bits: a register of words is four registers of values.

use super::decode::{Octets, words_at};
use super::product::{ArrangedRowMut, PackedProduct, Tile};
use alluvium_core::cpu::simd::{F32s, U32s};
use std::marker::PhantomData;

/// The product with codes as floats.
///
/// A register holds words, so its lane `l` has the codes `4 · l .. 4 · (l + 1)`: the same of a row lies four apart.
pub(super) struct ByOctets<D>(PhantomData<D>);

impl<D: Octets> PackedProduct for ByOctets<D> {
    const CODES: usize = 4;
    const WORDS: usize = 4;
    const RAISED: bool = false;

    #[inline(always)]
    fn arrange<S: F32s>(x: &[f32], row: ArrangedRowMut<'_>) {
        let group = x.len() / row.sums.len();
        for (sum, x) in row.sums.iter_mut().zip(x.chunks_exact(group)) {
            let mut lanes = S::splat(0.0);
            for x in x.chunks_exact(S::LANES) {
                lanes += S::load(x);
            }
            *sum = lanes.sum();
        }
        let to: &mut [f32] = bytemuck::cast_slice_mut(row.words);
        for (to, x) in to.chunks_exact_mut(4 * S::LANES).zip(x.chunks(4 * S::LANES)) {
            for (j, to) in to.chunks_exact_mut(S::LANES).enumerate() {
                let factor = if D::IN_PLACE && j < 3 { 1.0 / (1 << (8 * j)) as f32 } else { 1.0 };
                for (to, x) in to.iter_mut().zip(x.chunks_exact(4)) {
                    *to = factor * x[j];
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add<S: F32s, const N: usize, const M: usize, const WHOLE: bool>(
        tile: &Tile<'_, S, N, M>,
        first: usize,
        totals: &mut [[S; M]; N],
    ) {
        // loops, not closures, which would not be compiled for the instruction set
        let mut words = [S::Bits::splat(0); N];
        for (n, words) in words.iter_mut().enumerate() {
            // SAFETY: a lane is a word, and the caller's promise.
            *words = unsafe { words_at::<S, WHOLE>(tile.row(n), first) };
        }
        let mut sums = [[S::splat(0.0); M]; N];
        for j in 0..4 {
            let at = 4 * first + j * S::LANES;
            let mut x = [S::splat(0.0); M];
            for (x, row) in x.iter_mut().zip(&tile.rows) {
                // SAFETY: the row has four words for each of these lanes.
                *x = unsafe { S::load_ptr(row.words.as_ptr().add(at).cast()) };
            }
            for (sums, words) in sums.iter_mut().zip(&words) {
                let w = D::at::<S>(*words, j as u32);
                for (sum, x) in sums.iter_mut().zip(&x) {
                    *sum = w.mul_add(*x, *sum);
                }
            }
        }
        for (n, (totals, sums)) in totals.iter_mut().zip(&sums).enumerate() {
            // SAFETY: the caller's promise.
            let scales = unsafe { tile.scales::<WHOLE>(n, first) };
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = sum.mul_add(scales, *total);
            }
        }
    }
}
