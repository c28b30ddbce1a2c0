//! The product with a scalar.

use super::map::{self, Unary};
use super::{UNARY, gpu};
use crate::op::{Cost, Gradient, Op};
use alluvium_core::contract::FLOATS;
use alluvium_core::cpu::simd::F32s;
use alluvium_core::gpu::Kernel;
use alluvium_core::{Arg, Backward, Contract, Result, Tensor, tape};

/// The contract of `scale`.
static CONTRACT: Contract = Contract { op: "scale", args: &[Arg::new("x", "R..", FLOATS)], rules: &[] };

static KERNEL: Kernel = crate::common::gpu::kernel(
    "scale",
    &[
        gpu::UNARY,
        "fn value(x: vec4<f32>) -> vec4<f32> { return x * p.scalar; }\n",
        "fn derivative(x: vec4<f32>) -> vec4<f32> { return vec4<f32>(p.scalar); }\n",
    ],
);

/// `factor·x`, element by element.
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `x`    | `R..` | f32, f16, bf16 | yes      |
/// | result | `R..` | that of `x`    |          |
///
/// The product is computed in f32 and rounded once. The backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
pub fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    CONTRACT.check(&[x])?;
    tape::record([x], map::map(x, Scale { factor })?, || Grad { factor })
}

#[derive(Clone, Copy)]
struct Scale {
    factor: f32,
}

impl Unary for Scale {
    #[inline(always)]
    fn value<S: F32s>(self, x: S) -> S {
        x * S::splat(self.factor)
    }
}

impl gpu::WgslMap for Scale {
    fn kernel(self) -> &'static Kernel {
        &KERNEL
    }

    fn scalar(self) -> f32 {
        self.factor
    }
}

/// `dx = factor·dy`.
struct Grad {
    factor: f32,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(scale(&dy, self.factor)?)])
    }
}

/// The factor of the cases.
const FACTOR: f32 = -1.7;

/// The entry of `scale` in the list.
pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "x times a scalar",
    run: |t| Ok(vec![scale(&t["x"], FACTOR)?]),
    reference: |t| vec![t["x"].map(|x| f64::from(FACTOR) * x)],
    gradient: Gradient::Of(|_, dy| vec![Some(dy[0].map(|dy| f64::from(FACTOR) * dy))]),
    cost: |d| Cost { bytes: 8 * d['R'], flops: d['R'], backward_bytes: 8 * d['R'], backward_flops: d['R'] },
    ..UNARY
};
