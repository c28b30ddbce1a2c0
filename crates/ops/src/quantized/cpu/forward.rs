//! Rows of floats times the transpose of quantized rows, with the codes as they lie.

use super::Codes;
use super::bytes::ByBytes;
use super::decode::{Aligned, Crossing, E2m1, E4m3, Whole};
use super::octets::ByOctets;
use super::product::{Arranged, ArrangedRowMut, PackedProduct};
use super::strips;
use crate::linalg::weights::Weights;
use crate::quantized::Packing;
use alluvium_core::Result;
use alluvium_core::cpu::{ActivationBits, Cpu, GeneratedMatrix, Rhs};
use std::ops::Range;

/// Runs an expression with `P` the product of a packing with activations of these bits.
macro_rules! by_packing {
    ($cpu:expr, $packing:expr, $P:ident => $body:expr) => {
        match $cpu.activation_bits() {
            ActivationBits::All => by_packing!(@ $packing, $P, $body, 3),
            ActivationBits::Eight => by_packing!(@ $packing, $P, $body, 1),
        }
    };
    (@ $packing:expr, $P:ident, $body:expr, $digits:literal) => {
        by_packing!(@ $packing, $P, $body,
            [Packing::Affine { bits: 1, .. } => ByBytes<Crossing<1>, $digits>]
            [Packing::Affine { bits: 2, .. } => ByBytes<Aligned<2>, $digits>]
            [Packing::Affine { bits: 3, .. } => ByBytes<Crossing<3>, $digits>]
            [Packing::Affine { bits: 4, .. } => ByBytes<Aligned<4>, $digits>]
            [Packing::Affine { bits: 5, .. } => ByBytes<Crossing<5>, $digits>]
            [Packing::Affine { bits: 6, .. } => ByBytes<Crossing<6>, $digits>]
            [Packing::Affine { .. } => ByOctets<Whole>]
            [Packing::Mxfp4 | Packing::Nvfp4 => ByBytes<E2m1, $digits>]
            [Packing::Mxfp8 => ByOctets<E4m3>])
    };
    (@ $packing:expr, $P:ident, $body:expr, $([$pattern:pat => $product:ty])*) => {
        match $packing {
            $($pattern => {
                type $P = $product;
                $body
            })*
        }
    };
}

impl Weights for Codes<'_> {
    type Ready<'x> = Arranged;

    fn inner(&self) -> usize {
        self.layout.inner
    }

    fn factor(&self, cpu: &Cpu, rows: Range<usize>) -> Result<Rhs<'_>> {
        Ok(GeneratedMatrix::new(cpu, self, rows, self.layout.inner).into())
    }

    fn ready(&self, cpu: &Cpu, x: &[f32]) -> Result<Arranged> {
        let (inner, groups) = (self.layout.inner, self.layout.groups);
        let count = x.len() / inner;
        let (codes, each) = by_packing!(cpu, self.layout.packing, P => (P::CODES, P::WORDS));
        let lanes = (inner / codes).next_multiple_of(cpu.isa().lanes());
        let mut ready = Arranged::new(cpu, count, [lanes * each, lanes, groups])?;
        for (x, row) in x.chunks_exact(inner).zip(ready.rows_mut()) {
            by_packing!(cpu, self.layout.packing, P => arrange::<P>(cpu.isa(), x, row));
        }
        Ok(ready)
    }

    fn dots(&self, cpu: &Cpu, first: usize, x: (&Arranged, &[usize]), scratch: &mut [f32], out: &mut [f32]) {
        by_packing!(cpu, self.layout.packing, P => strips::products::<P>(cpu.isa(), (self, first), x, scratch, out));
    }

    fn scratch(&self) -> usize {
        if self.is_ready() { 0 } else { strips::scratch(self.layout) }
    }
}

alluvium_core::simd! {
    /// One row of floats.
    fn arrange<S, P: PackedProduct>(x: &[f32], row: ArrangedRowMut<'_>) {
        P::arrange::<S>(x, row);
    }
}
