//! Functions of two elements: a row each.

use super::map::{self, Binary, BinaryDerivatives};
use super::{BINARY, gpu};
use crate::common::gpu::MATH;
use crate::op::{Array, Cost, Gradient, Op};
use crate::scale;
use alluvium_core::contract::{FLOATS, SAME};
use alluvium_core::cpu::simd::{F32s, math};
use alluvium_core::gpu::Kernel;
use alluvium_core::{Arg, Backward, Contract, Result, Tensor, tape};

/// Defines what all binary operations have: the contract, the formula over lanes and in WGSL, and the entry in the
/// list.
///
/// A row has the names of its arguments; `value` and `derivatives` over lanes `S`; `wgsl` with the value and both
/// derivatives as expressions; `reference` with the value and both derivatives in f64.
macro_rules! binary {
    ($(
        $name:ident($a:ident, $b:ident): {
            summary: $summary:literal,
            value: $value:expr,
            derivatives: $derivatives:expr,
            wgsl: ($wgsl_value:literal, $wgsl_a:literal, $wgsl_b:literal),
            reference: ($reference:expr, $reference_derivatives:expr)
            $(, cost: $cost:expr)? $(,)?
        }
    )*) => {$(
        pub(crate) mod $name {
            #[allow(unused_imports)]
            use super::*;
            pub use super::$name;

            pub(super) static CONTRACT: Contract = Contract {
                op: stringify!($name),
                args: &[Arg::new(stringify!($a), "R..", FLOATS), Arg::new(stringify!($b), "R..", SAME)],
                rules: &[],
            };

            static KERNEL: Kernel = crate::common::gpu::kernel(
                stringify!($name),
                &[
                    MATH,
                    gpu::BINARY,
                    concat!(
                        "fn value(", stringify!($a), ": vec4<f32>, ", stringify!($b), ": vec4<f32>) -> vec4<f32> {\n",
                        "    return ", $wgsl_value, ";\n}\n",
                        "fn derivatives(", stringify!($a), ": vec4<f32>, ", stringify!($b), ": vec4<f32>) -> Derivatives {\n",
                        "    return Derivatives(", $wgsl_a, ", ", $wgsl_b, ");\n}\n",
                    ),
                ],
            );

            #[derive(Clone, Copy)]
            pub(super) struct Map;

            impl Binary for Map {
                #[inline(always)]
                fn value<S: F32s>(self, $a: S, $b: S) -> S {
                    $value
                }
            }

            impl BinaryDerivatives for Map {
                #[inline(always)]
                #[allow(unused_variables)]
                fn derivatives<S: F32s>(self, $a: S, $b: S) -> (S, S) {
                    $derivatives
                }
            }

            impl gpu::WgslMap for Map {
                fn kernel(self) -> &'static Kernel {
                    &KERNEL
                }
            }

            pub(crate) static OP: Op = Op {
                contract: &CONTRACT,
                summary: $summary,
                run: |t| Ok(vec![super::$name(&t[stringify!($a)], &t[stringify!($b)])?]),
                reference: |t| vec![t[stringify!($a)].zip(&t[stringify!($b)], $reference)],
                gradient: Gradient::Of(|t, dy| {
                    gradient(&t[stringify!($a)], &t[stringify!($b)], &dy[0], $reference_derivatives)
                }),
                $(cost: $cost,)?
                ..BINARY
            };
        }
    )*};
}

binary! {
    add(a, b): {
        summary: "a + b",
        value: a + b,
        derivatives: (S::splat(1.0), S::splat(1.0)),
        wgsl: ("a + b", "vec4<f32>(1.0)", "vec4<f32>(1.0)"),
        reference: (|a, b| a + b, |_, _| (1.0, 1.0)),
        cost: |d| Cost { bytes: 12 * d['R'], flops: d['R'], backward_bytes: 0, backward_flops: 0 },
    }
    sub(a, b): {
        summary: "a − b",
        value: a - b,
        derivatives: (S::splat(1.0), S::splat(-1.0)),
        wgsl: ("a - b", "vec4<f32>(1.0)", "vec4<f32>(-1.0)"),
        reference: (|a, b| a - b, |_, _| (1.0, -1.0)),
        cost: |d| Cost { bytes: 12 * d['R'], flops: d['R'], backward_bytes: 8 * d['R'], backward_flops: d['R'] },
    }
    mul(a, b): {
        summary: "a·b",
        value: a * b,
        derivatives: (b, a),
        wgsl: ("a * b", "b", "a"),
        reference: (|a, b| a * b, |a, b| (b, a)),
    }
    swiglu(gate, up): {
        summary: "silu(gate)·up",
        value: math::silu(gate) * up,
        derivatives: {
            let (silu, derivative) = math::silu_and_derivative(gate);
            (up * derivative, silu)
        },
        wgsl: ("silu4(gate) * up", "up * silu_and_derivative4(gate).derivative", "silu4(gate)"),
        reference: (
            |gate, up| gate / (1.0 + (-gate).exp()) * up,
            |gate, up| {
                let s = 1.0 / (1.0 + (-gate).exp());
                (up * s * (1.0 + gate * (1.0 - s)), gate * s)
            }
        ),
    }
}

/// `a + b`, element by element.
///
/// `da = db = dy`: the same memory, nothing is copied.
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `a`    | `R..` | f32, f16, bf16 | yes      |
/// | `b`    | `R..` | that of `a`    | yes      |
/// | result | `R..` | that of `a`    |          |
///
/// The backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    add::CONTRACT.check(&[a, b])?;
    tape::record([a, b], map::map2(a, b, add::Map)?, || AddGrad)
}

/// `da = db = dy`.
struct AddGrad;

impl Backward<2> for AddGrad {
    fn op(&self) -> &'static str {
        add::CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        Ok([need[0].then(|| dy.clone()), need[1].then_some(dy)])
    }
}

/// `a − b`, element by element.
///
/// `da = dy` and `db = −dy`.
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `a`    | `R..` | f32, f16, bf16 | yes      |
/// | `b`    | `R..` | that of `a`    | yes      |
/// | result | `R..` | that of `a`    |          |
///
/// The backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
pub fn sub(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    sub::CONTRACT.check(&[a, b])?;
    tape::record([a, b], map::map2(a, b, sub::Map)?, || SubGrad)
}

/// `da = dy` and `db = −dy`.
struct SubGrad;

impl Backward<2> for SubGrad {
    fn op(&self) -> &'static str {
        sub::CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        let db = need[1].then(|| scale(&dy, -1.0)).transpose()?;
        Ok([need[0].then_some(dy), db])
    }
}

/// `a·b`, element by element.
///
/// `da = dy·b` and `db = dy·a`.
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `a`    | `R..` | f32, f16, bf16 | yes      |
/// | `b`    | `R..` | that of `a`    | yes      |
/// | result | `R..` | that of `a`    |          |
///
/// The backward pass keeps `a` and `b`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    map::binary(&mul::CONTRACT, a, b, mul::Map)
}

/// SwiGLU: `silu(gate)·up`, element by element, in one pass.
///
/// With `s = silu(gate)`: `d gate = dy·up·s′` and `d up = dy·s`. The limits at the infinities are those of
/// [`silu`](crate::silu()).
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `gate` | `R..` | f32, f16, bf16 | yes      |
/// | `up`   | `R..` | that of `gate` | yes      |
/// | result | `R..` | that of `gate` |          |
///
/// The backward pass keeps `gate` and `up`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
///
/// # Source
/// Shazeer 2020, arXiv:2002.05202. Same as `swiglu` of mlx-lm.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    map::binary(&swiglu::CONTRACT, gate, up, swiglu::Map)
}

/// The gradient of a reference, from its derivatives.
fn gradient(a: &Array, b: &Array, dy: &Array, f: fn(f64, f64) -> (f64, f64)) -> Vec<Option<Array>> {
    let times_dy = |derivative: Array| derivative.zip(dy, |d, dy| d * dy);
    vec![Some(times_dy(a.zip(b, |a, b| f(a, b).0))), Some(times_dy(a.zip(b, |a, b| f(a, b).1)))]
}
