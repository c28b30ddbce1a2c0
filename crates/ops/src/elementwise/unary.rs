//! Functions of one element: a row each.

use super::map::{self, Unary, UnaryDerivative};
use super::{UNARY, formulas, gpu};
use crate::common::gpu::MATH;
use crate::op::{Case, Fill, Gradient, Op};
use alluvium_core::contract::FLOATS;
use alluvium_core::cpu::simd::{F32s, math};
use alluvium_core::gpu::Kernel;
use alluvium_core::{Arg, Contract, Result, Tensor};

/// Defines unary operations.
///
/// A row has the function's documentation and name, then `value(x)` and `derivative(x)` over lanes `S`; `wgsl` with
/// both as expressions of `x: vec4<f32>`, and perhaps a file of functions that they call; `reference` with both in f64.
/// `fill` and `cases` replace the random inputs and the cases of the family.
macro_rules! unary {
    ($(
        $(#[$doc:meta])*
        $name:ident: {
            summary: $summary:literal,
            value($x:ident): $value:expr,
            derivative($dx:ident): $derivative:expr,
            wgsl: ($wgsl_value:literal, $wgsl_derivative:literal $(, $file:literal)?),
            reference: ($reference:expr, $reference_derivative:expr)
            $(, fill: $fill:expr)?
            $(, cases: $cases:expr)? $(,)?
        }
    )*) => {$(
        $(#[$doc])*
        ///
        /// | tensor | shape | dtype          | gradient |
        /// |--------|-------|----------------|----------|
        /// | `x`    | `R..` | f32, f16, bf16 | yes      |
        /// | result | `R..` | that of `x`    |          |
        ///
        /// The backward pass keeps `x`.
        ///
        /// # Errors
        /// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
        pub fn $name(x: &Tensor) -> Result<Tensor> {
            map::unary(&$name::CONTRACT, x, $name::Map)
        }

        pub(crate) mod $name {
            #[allow(unused_imports)]
            use super::*;
            pub use super::$name;

            pub(super) static CONTRACT: Contract = Contract {
                op: stringify!($name),
                args: &[Arg::new("x", "R..", FLOATS)],
                rules: &[],
            };

            static KERNEL: Kernel = crate::common::gpu::kernel(
                stringify!($name),
                &[
                    MATH,
                    gpu::UNARY,
                    $(include_str!($file),)?
                    concat!(
                        "fn value(x: vec4<f32>) -> vec4<f32> { return ", $wgsl_value, "; }\n",
                        "fn derivative(x: vec4<f32>) -> vec4<f32> { return ", $wgsl_derivative, "; }\n",
                    ),
                ],
            );

            #[derive(Clone, Copy)]
            pub(super) struct Map;

            impl Unary for Map {
                #[inline(always)]
                fn value<S: F32s>(self, $x: S) -> S {
                    $value
                }
            }

            impl UnaryDerivative for Map {
                #[inline(always)]
                fn derivative<S: F32s>(self, $dx: S) -> S {
                    $derivative
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
                run: |t| Ok(vec![super::$name(&t["x"])?]),
                reference: |t| vec![t["x"].map($reference)],
                $(fills: &[("x", $fill)],)?
                gradient: Gradient::Of(|t, dy| vec![Some(t["x"].map($reference_derivative).zip(&dy[0], |d, dy| d * dy))]),
                $(cases: $cases,)?
                ..UNARY
            };
        }
    )*};
}

unary! {
    /// SiLU: `x·σ(x)`, element by element; also called swish.
    ///
    /// `dx = dy · σ(x)·(1 + x·(1 − σ(x)))`. Finite for every finite `x`; −0 and infinity at the infinities, with
    /// derivatives 0 and 1.
    ///
    /// Source: Hendrycks and Gimpel 2016, arXiv:1606.08415; Ramachandran et al. 2017, arXiv:1710.05941. Same as
    /// `mlx.nn.silu`.
    silu: {
        summary: "x·σ(x)",
        value(x): math::silu(x),
        derivative(x): math::silu_and_derivative(x).1,
        wgsl: ("silu4(x)", "silu_and_derivative4(x).derivative"),
        reference: (|x| x * logistic(x), |x| logistic(x) * (1.0 + x * logistic(-x))),
    }

    /// The logistic function: `1 / (1 + e⁻ˣ)`, element by element.
    ///
    /// `dx = dy · σ(x)·σ(−x)`. 0 and 1 at the infinities, with derivative 0.
    sigmoid: {
        summary: "1 / (1 + e⁻ˣ)",
        value(x): math::sigmoid(x),
        derivative(x): math::sigmoid(x) * math::sigmoid(-x),
        wgsl: ("sigmoid4(x)", "sigmoid4(x) * sigmoid4(-x)"),
        reference: (logistic, |x| logistic(x) * logistic(-x)),
    }

    /// Softplus: `log(1 + eˣ)`, element by element, without overflow.
    ///
    /// `dx = dy · σ(x)`. 0 and infinity at the infinities.
    softplus: {
        summary: "log(1 + eˣ)",
        value(x): math::softplus(x),
        derivative(x): math::sigmoid(x),
        wgsl: ("softplus4(x)", "sigmoid4(x)"),
        reference: (|x| x.max(0.0) + (-x.abs()).exp().ln_1p(), logistic),
    }

    /// GELU: `x·Φ(x)` with `Φ(x) = (1 + erf(x/√2)) / 2`, element by element: the exact one, not its tanh approximation.
    ///
    /// `dx = dy · (Φ(x) + x·φ(x))` with `φ(x) = exp(−x²/2) / √(2π)`. 0 and infinity at the infinities, with derivatives
    /// 0 and 1.
    ///
    /// Source: Hendrycks and Gimpel 2016, arXiv:1606.08415. Same as `mlx.nn.gelu`.
    gelu: {
        summary: "x·Φ(x)",
        value(x): formulas::exact_gelu(x),
        derivative(x): formulas::exact_gelu_derivative(x),
        wgsl: ("gelu(x)", "gelu_derivative(x)", "gelu.wgsl"),
        reference: (formulas::exact_gelu_reference, formulas::exact_gelu_reference_derivative),
    }

    /// GELU by a hyperbolic tangent: `x·(1 + tanh(u))/2` with `u = √(2/π)·(x + 0.044715·x³)`, element by element.
    /// Models that were trained with it need it instead of [`gelu`](crate::gelu()).
    ///
    /// `dx = dy · (s + 2·x·s·(1 − s)·u′)` with `s = σ(2u)` and `u′ = √(2/π)·(1 + 0.134145·x²)`. 0 and infinity at the
    /// infinities, with derivatives 0 and 1.
    ///
    /// Source: Hendrycks and Gimpel 2016, arXiv:1606.08415. Same as `mlx.nn.gelu_approx`.
    gelu_approx: {
        summary: "x·σ(2u), u = √(2/π)·(x + 0.044715·x³)",
        value(x): formulas::approximate_gelu(x),
        derivative(x): formulas::approximate_gelu_derivative(x),
        wgsl: ("gelu_approx(x)", "gelu_approx_derivative(x)", "gelu_approx.wgsl"),
        reference: (formulas::approximate_gelu_reference, formulas::approximate_gelu_reference_derivative),
    }

    /// ReLU: `max(x, 0)`, element by element.
    ///
    /// `dx = dy` where `x > 0`, and 0 elsewhere, at 0 itself, too.
    ///
    /// Source: Nair and Hinton 2010. Same as `mlx.nn.relu`, derivative at 0 included.
    relu: {
        summary: "max(x, 0)",
        value(x): S::splat(0.0).max(x),
        // the smallest subnormal times this is above 1
        derivative(x): S::splat(1.0).min(S::splat(0.0).max(x) * S::splat(1e38) * S::splat(1e8)),
        wgsl: ("max(x, vec4<f32>(0.0))", "select(vec4<f32>(0.0), vec4<f32>(1.0), x > vec4<f32>(0.0))"),
        reference: (|x| if x > 0.0 { x } else { 0.0 }, |x| if x > 0.0 { 1.0 } else { 0.0 }),
        cases: &[
            Case::new("one element", &[('R', 1)]).filled(&[("x", Fill::Uniform(0.5, 1.5))]),
            Case::new("one more than a register", &[('R', 17)]),
            Case::new("odd", &[('R', 3 * 63)]),
            Case::new("more than a thread's share", &[('R', 70_001)]),
        ],
    }

    /// The exponential: `eˣ`, element by element.
    ///
    /// `dx = dy · eˣ`. 0 below -104, infinity above 88.73.
    exp: {
        summary: "eˣ",
        value(x): math::exp(x),
        derivative(x): math::exp(x),
        wgsl: ("exp4(x)", "exp4(x)"),
        reference: (f64::exp, f64::exp),
    }

    /// The natural logarithm, element by element.
    ///
    /// `dx = dy / x`. −infinity at 0, NaN below.
    log: {
        summary: "log x",
        value(x): by_lane(x, f32::ln),
        derivative(x): S::splat(1.0) / x,
        wgsl: ("log(x)", "1.0 / x"),
        reference: (f64::ln, f64::recip),
        fill: Fill::Uniform(0.05, 8.0),
    }
}

/// A function that has no vector form, lane by lane. No registers of an instruction set have more lanes than these.
#[inline(always)]
fn by_lane<S: F32s>(x: S, f: impl Fn(f32) -> f32) -> S {
    let mut lanes = [0.0; 16];
    x.store(&mut lanes);
    S::load(&lanes.map(f))
}

/// σ(x), for references.
fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
