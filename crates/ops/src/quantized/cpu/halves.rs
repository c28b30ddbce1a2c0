//! Integer codes of eight bits with activations in 16 bits: a product takes two codes of a lane at once.

use super::decode::words_at;
use super::product::{ArrangedRowMut, PackedProduct, Tile};
use alluvium_core::cpu::simd::{F32s, U32s};

/// The largest integer of an activation.
const LARGEST: f32 = 32_767.0;
/// 1.5 · 2²³: added to a float below 2²² it leaves the nearest integer in the lowest bits, with its sign.
const ROUNDING: f32 = 12_582_912.0;

/// The product with codes in halves of words: a lane is a word of four codes, those with even places first.
pub(super) struct ByHalves;

impl PackedProduct for ByHalves {
    const CODES: usize = 4;
    const WORDS: usize = 2;
    const RAISED: bool = false;

    #[inline(always)]
    fn arrange<S: F32s>(x: &[f32], row: ArrangedRowMut<'_>) {
        let group = x.len() / row.sums.len();
        for (g, (x, sum)) in x.chunks_exact(group).zip(row.sums).enumerate() {
            let mut total = 0.0;
            for (i, x) in x.chunks_exact(4).enumerate() {
                let (lane, mut largest, mut all) = (g * (group / 4) + i, 0f32, 0.0);
                for x in x {
                    largest = largest.max(x.abs());
                    all += *x;
                }
                // a NaN or infinity shows in all products of its lane
                let unit = (largest / LARGEST).max(1e-38) + 0.0 * all;
                let factor = 1.0 / unit;
                let mut digits = [0; 4];
                for (digit, x) in digits.iter_mut().zip(x) {
                    *digit = (x * factor + ROUNDING).to_bits();
                }
                let (block, at) = (lane / S::LANES, lane % S::LANES);
                for half in 0..2 {
                    let word = digits[half] & 0xffff | digits[half + 2] << 16;
                    row.words[(2 * block + half) * S::LANES + at] = word;
                }
                row.units[lane] = unit;
                for digit in digits {
                    total += unit * f32::from(digit as i16);
                }
            }
            *sum = total;
        }
    }

    #[inline(always)]
    unsafe fn add<S: F32s, const N: usize, const M: usize, const WHOLE: bool>(
        tile: &Tile<'_, S, N, M>,
        first: usize,
        totals: &mut [[S; M]; N],
    ) {
        let mask = S::Bits::splat(0x00ff_00ff);
        // loops, not closures, which would not be compiled for the instruction set
        for (n, totals) in totals.iter_mut().enumerate() {
            // SAFETY: a lane is a word, and the caller's promise.
            let (words, scales) = unsafe { (words_at::<S, WHOLE>(tile.row(n), first), tile.scales::<WHOLE>(n, first)) };
            let codes = [words & mask, words.shr(8) & mask];
            for (total, row) in totals.iter_mut().zip(&tile.rows) {
                let mut sum = S::Bits::splat(0);
                for (half, codes) in codes.iter().enumerate() {
                    // SAFETY: the row has two words for each of these lanes.
                    let x = unsafe { S::Bits::load_ptr(row.words.as_ptr().add(2 * first + half * S::LANES)) };
                    sum = sum.dot_halves(*codes, x);
                }
                // SAFETY: the row has a unit for each of these lanes.
                let units = unsafe { S::load_ptr(row.units.as_ptr().add(first)) };
                *total = (S::from_i32(sum) * units).mul_add(scales, *total);
            }
        }
    }
}
