//! Codes below 64 as bytes: products of whole numbers, four to an instruction.
//!
//! Each group of a row of numbers becomes `unit · X` with whole `X` of 23 bits and a sign: as exact as f32 beside the largest
//! of the group. In three digits of base 256 from -128 to 127, `X` is multiplied digit by digit, and nothing is rounded
//! before a group's products are scaled.

use super::decode::Bytes;
use super::forward::{Product, Row, RowMut, Strip};
use alluvium_core::cpu::simd::{F32s, U32s};
use std::marker::PhantomData;

/// The largest `X`: three digits hold it, and the sum of a lane's products with codes below 64 fits into 31 bits.
const LARGEST: f32 = 8_355_000.0;
/// Half of the base in every digit: added, the digits are bytes without a sign.
const HALVES: u32 = 0x80_8080;
/// Codes of a block of registers, at most.
const BLOCK: usize = 256;

/// The product with codes as bytes.
pub(super) struct ByBytes<B>(PhantomData<B>);

impl<B: Bytes> Product for ByBytes<B> {
    const CODES: usize = 4 * B::REGISTERS;
    const WORDS: usize = 3 * B::REGISTERS;
    const RAISED: bool = B::OFFSET != 0.0;

    #[inline(always)]
    fn arrange<S: F32s>(x: &[f32], row: RowMut<'_>) {
        let group = x.len() / row.sums.len();
        let (lanes, block) = (group / Self::CODES, S::LANES * Self::CODES);
        for ((x, sum), units) in x.chunks_exact(group).zip(row.sums).zip(row.units.chunks_exact_mut(lanes)) {
            let (mut sums, mut largest) = (S::splat(0.0), S::splat(0.0));
            for x in x.chunks_exact(S::LANES) {
                let x = S::load(x);
                sums += x;
                largest = largest.max(x.max(-x));
            }
            let total = sums.sum();
            // whatever is no number in the group shows in all of its products
            let unit = (largest.max_lane() / LARGEST).max(1e-38) + 0.0 * total;
            units.fill(B::UNIT * unit);
            *sum = if Self::RAISED { -B::UNIT * B::OFFSET * total } else { total };
        }
        for (i, to) in row.words.chunks_exact_mut(S::LANES * Self::WORDS).enumerate() {
            let x = &x[x.len().min(i * block)..x.len().min((i + 1) * block)];
            let units = &row.units[i * S::LANES..];
            let mut digits = [0; BLOCK];
            let run = group.min(block);
            for (j, (x, digits)) in x.chunks(run).zip(digits.chunks_mut(run)).enumerate() {
                in_digits::<S>(x, B::UNIT / units[j * run / Self::CODES], digits);
            }
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(to);
            for (digit, bytes) in bytes.chunks_exact_mut(4 * S::LANES * B::REGISTERS).enumerate() {
                for (register, bytes) in bytes.chunks_exact_mut(4 * S::LANES).enumerate() {
                    for (digits, byte) in digits.chunks_exact(B::REGISTERS).zip(bytes) {
                        *byte = (digits[register] >> (16 - 8 * digit)) as u8;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn tile<S: F32s, const N: usize, const M: usize>(strip: &Strip<'_>, rows: &[Row<'_>; M]) -> [[S; M]; N] {
        let lanes = rows[0].units.len();
        let (blocks, each) = (lanes / S::LANES, strip.group / Self::CODES);
        for row in rows {
            assert!(row.units.len() == lanes && row.words.len() == lanes * Self::WORDS);
        }
        let mut totals = [[S::splat(0.0); M]; N];
        for block in 0..blocks {
            let first = block * S::LANES;
            // loops, not closures, which would not be compiled for the instruction set
            let mut codes = [[S::Bits::splat(0); 4]; N];
            for (n, codes) in codes.iter_mut().enumerate() {
                strip.prefetch::<N>(n, block, blocks);
                *codes = B::bytes::<S>(strip.row(n), first);
            }
            let mut sums = [[S::Bits::splat(0); M]; N];
            for digit in 0..3 {
                for register in 0..B::REGISTERS {
                    let at = first * Self::WORDS + (digit * B::REGISTERS + register) * S::LANES;
                    for (m, row) in rows.iter().enumerate() {
                        // SAFETY: the assert keeps all registers of all blocks inside the row.
                        let digits = unsafe { S::Bits::load_ptr(row.words.as_ptr().add(at)) };
                        for (sums, codes) in sums.iter_mut().zip(&codes) {
                            let before = if digit > 0 && register == 0 { sums[m].shl(8) } else { sums[m] };
                            sums[m] = before.dot_bytes(codes[register], digits);
                        }
                    }
                }
            }
            for (n, (totals, sums)) in totals.iter_mut().zip(&sums).enumerate() {
                let scales = strip.scales::<S>(n, first, each);
                for ((total, sum), row) in totals.iter_mut().zip(sums).zip(rows) {
                    *total = (S::from_i32(*sum) * S::load(&row.units[first..])).mul_add(scales, *total);
                }
            }
        }
        totals
    }
}

/// The digits of `factor · x`, each in a byte with its sign, the lowest first.
#[inline(always)]
fn in_digits<S: F32s>(x: &[f32], factor: f32, digits: &mut [u32]) {
    let mut whole = [0.0; BLOCK];
    for (x, whole) in x.chunks_exact(S::LANES).zip(whole.chunks_exact_mut(S::LANES)) {
        (S::load(x) * S::splat(factor)).round().store(whole);
    }
    for (digits, &whole) in digits.iter_mut().zip(&whole[..x.len()]) {
        *digits = (whole as i32 as u32).wrapping_add(HALVES) ^ HALVES;
    }
}
