//! Codes below 64 as bytes: products of integers, four to an instruction.
//!
//! Each group of a row of floats becomes `unit · X` with whole `X` of 23 bits and a sign: as exact as f32 beside the
//! largest of the group. In three digits of base 256 from -128 to 127, `X` is multiplied digit by digit, and nothing is
//! rounded before a group's products are scaled.
//!
//! With activations in 8 bits `X` is one digit, and each lane has its own `unit`. The sums of groups, which the biases of
//! the weights are multiplied with, are then those of `unit · X`: errors of codes and biases cancel as the weights do.

use super::decode::Bytes;
use super::product::{ArrangedRowMut, PackedProduct, Tile};
use alluvium_core::cpu::simd::{F32s, U32s};
use std::marker::PhantomData;

/// The largest `X`: three digits hold it, and the sum of a lane's products with codes below 64 fits into 31 bits.
const LARGEST: f32 = 8_355_000.0;
/// Half of the base in every digit: added, the digits are bytes without a sign.
const HALVES: u32 = 0x80_8080;
/// Codes of a block of registers, at most.
const BLOCK: usize = 256;

/// The product with codes as bytes, and activations of this many digits: 3 or 1.
pub(super) struct ByBytes<B, const DIGITS: usize>(PhantomData<B>);

impl<B: Bytes, const DIGITS: usize> PackedProduct for ByBytes<B, DIGITS> {
    const CODES: usize = 4 * B::REGISTERS;
    const WORDS: usize = DIGITS * B::REGISTERS;
    const RAISED: bool = raised::<B>();

    #[inline(always)]
    fn arrange<S: F32s>(x: &[f32], row: ArrangedRowMut<'_>) {
        if DIGITS == 1 { arrange_digit::<S, B>(x, row) } else { arrange_digits::<S, B>(x, row) }
    }

    #[inline(always)]
    unsafe fn add<S: F32s, const N: usize, const M: usize, const WHOLE: bool>(
        tile: &Tile<'_, S, N, M>,
        first: usize,
        totals: &mut [[S; M]; N],
    ) {
        // loops, not closures, which would not be compiled for the instruction set
        let mut codes = [[S::Bits::splat(0); 4]; N];
        for (n, codes) in codes.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *codes = unsafe { B::bytes::<S, WHOLE>(tile.row(n), first) };
        }
        let mut sums = [[S::Bits::splat(0); M]; N];
        for digit in 0..DIGITS {
            for (m, row) in tile.rows.iter().enumerate() {
                let mut digits = [S::Bits::splat(0); 4];
                for (register, digits) in digits[..B::REGISTERS].iter_mut().enumerate() {
                    let at = first * Self::WORDS + (digit * B::REGISTERS + register) * S::LANES;
                    // SAFETY: the row has `WORDS` words for each of these lanes.
                    *digits = unsafe { S::Bits::load_ptr(row.words.as_ptr().add(at)) };
                }
                for (sums, codes) in sums.iter_mut().zip(&codes) {
                    let before = if digit > 0 { sums[m].shl(8) } else { sums[m] };
                    sums[m] = before.dot_bytes(&codes[..B::REGISTERS], &digits[..B::REGISTERS]);
                }
            }
        }
        for (n, (totals, sums)) in totals.iter_mut().zip(&sums).enumerate() {
            // SAFETY: the caller's promise.
            let scales = unsafe { tile.scales::<WHOLE>(n, first) };
            for ((total, sum), row) in totals.iter_mut().zip(sums).zip(&tile.rows) {
                // SAFETY: the row has a unit for each of these lanes.
                let units = unsafe { S::load_ptr(row.units.as_ptr().add(first)) };
                *total = (S::from_i32(*sum) * units).mul_add(scales, *total);
            }
        }
    }
}

/// Whether bytes are larger than codes, so that the sums of groups count.
const fn raised<B: Bytes>() -> bool {
    B::OFFSET != 0.0
}

/// A row as three digits; a group has one unit.
#[inline(always)]
fn arrange_digits<S: F32s, B: Bytes>(x: &[f32], row: ArrangedRowMut<'_>) {
    let (group, codes) = (x.len() / row.sums.len(), 4 * B::REGISTERS);
    let (lanes, block) = (group / codes, S::LANES * codes);
    for ((x, sum), units) in x.chunks_exact(group).zip(row.sums).zip(row.units.chunks_exact_mut(lanes)) {
        let (mut sums, mut largest) = (S::splat(0.0), S::splat(0.0));
        for x in x.chunks_exact(S::LANES) {
            let x = S::load(x);
            sums += x;
            largest = largest.max(x.max(-x));
        }
        let total = sums.sum();
        // a NaN or infinity in the group shows in all of its products
        let unit = (largest.max_lane() / LARGEST).max(1e-38) + 0.0 * total;
        units.fill(B::UNIT * unit);
        *sum = if raised::<B>() { -B::UNIT * B::OFFSET * total } else { total };
    }
    for (i, to) in row.words.chunks_exact_mut(S::LANES * 3 * B::REGISTERS).enumerate() {
        let x = &x[x.len().min(i * block)..x.len().min((i + 1) * block)];
        let units = &row.units[i * S::LANES..];
        let mut whole = [HALVES; BLOCK];
        let run = group.min(block);
        for (j, (x, whole)) in x.chunks(run).zip(whole.chunks_mut(run)).enumerate() {
            let factor = S::splat(B::UNIT / units[j * run / codes]);
            for (x, whole) in x.chunks_exact(S::LANES).zip(whole.chunks_exact_mut(S::LANES)) {
                // below 2²⁴, so the sum is exact
                let raised = (S::load(x) * factor).round() + S::splat(HALVES as f32);
                S::from_bits(raised.to_i32()).store(bytemuck::cast_slice_mut(whole));
            }
        }
        in_bytes::<S, B>(&whole, to);
    }
}

/// A row as one digit; each lane has its own unit, because the neighbors of a large element would be 0 beside it.
#[inline(always)]
fn arrange_digit<S: F32s, B: Bytes>(x: &[f32], row: ArrangedRowMut<'_>) {
    // 1.5 · 2²³: added to a float below 2²² it leaves the nearest integer in the lowest bits, with its sign
    const ROUNDING: f32 = 12_582_912.0;
    let (group, codes) = (x.len() / row.sums.len(), 4 * B::REGISTERS);
    let lanes = group / codes;
    for (g, (x, sum)) in x.chunks_exact(group).zip(row.sums).enumerate() {
        let mut total = 0.0;
        for (i, x) in x.chunks_exact(codes).enumerate() {
            let (lane, mut largest, mut all) = (g * lanes + i, 0f32, 0.0);
            for x in x {
                largest = largest.max(x.abs());
                all += *x;
            }
            // a NaN or infinity shows in all products of its lane
            let unit = (largest / 127.0).max(1e-38) + 0.0 * all;
            let factor = 1.0 / unit;
            let mut digits = 0;
            for register in 0..B::REGISTERS {
                let mut word = 0;
                for byte in 0..4 {
                    let digit = (x[byte * B::REGISTERS + register] * factor + ROUNDING).to_bits();
                    digits += i32::from(digit as i8);
                    word |= (digit & 0xff) << (8 * byte);
                }
                let (block, at) = (lane / S::LANES, lane % S::LANES);
                row.words[(block * B::REGISTERS + register) * S::LANES + at] = word;
            }
            row.units[lane] = B::UNIT * unit;
            total += unit * digits as f32;
        }
        *sum = if raised::<B>() { -B::UNIT * B::OFFSET * total } else { total };
    }
}

/// The digits of integers to which [`HALVES`] was added, the highest first, as bytes with a sign: those of integer `i`
/// of a lane where the bytes of code `i` are.
#[inline(always)]
fn in_bytes<S: F32s, B: Bytes>(whole: &[u32; BLOCK], to: &mut [u32]) {
    let codes = 4 * B::REGISTERS;
    let mut columns = [0; BLOCK];
    for (lane, values) in whole.chunks_exact(codes).take(S::LANES).enumerate() {
        for (column, value) in columns.chunks_exact_mut(S::LANES).zip(values) {
            column[lane] = *value;
        }
    }
    for (at, to) in to.chunks_exact_mut(S::LANES).enumerate() {
        let (digit, register) = (at / B::REGISTERS, at % B::REGISTERS);
        let mut bytes = S::Bits::splat(0);
        for byte in 0..4 {
            let column = S::Bits::load_partial(&columns[(byte * B::REGISTERS + register) * S::LANES..][..S::LANES]);
            bytes = bytes | (column.shr(16 - 8 * digit as u32) & S::Bits::splat(0xff)).shl(8 * byte as u32);
        }
        S::from_bits(bytes ^ S::Bits::splat(0x8080_8080)).store(bytemuck::cast_slice_mut(to));
    }
}
