//! Formulas that need more than a line of the table: GELU, exact and by a hyperbolic tangent.

use alluvium_core::cpu::simd::{F32s, math};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// Beyond this the tail is 0 and σ(2u) is 0 or 1 in f32; an infinity times that 0 would be NaN.
const BOUND: f32 = 40.0;
/// 2·√(2/π)
const OUTER: f32 = 1.595_769_2;
const CUBE: f32 = 0.044715;

/// `1 − Φ(x)` for x ≥ 0.
#[inline(always)]
fn tail<S: F32s>(x: S) -> S {
    S::splat(0.5) * math::erfc_positive(x * S::splat(std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn bounded<S: F32s>(x: S) -> S {
    S::splat(BOUND).min(S::splat(-BOUND).max(x))
}

/// `x·Φ(x)`, from the tail alone, so that nothing cancels where it is small.
#[inline(always)]
pub(super) fn exact_gelu<S: F32s>(x: S) -> S {
    let size = math::abs(x);
    S::splat(0.0).max(x) - S::splat(BOUND).min(size) * tail(size)
}

#[inline(always)]
pub(super) fn exact_gelu_derivative<S: F32s>(x: S) -> S {
    let x = bounded(x);
    let density = math::exp(x * x * S::splat(-0.5)) * S::splat(0.398_942_3);
    // 0 or 1 by the sign; where this is neither, the tail is a half and its factor 0
    let side = S::splat(1.0).min(S::splat(-1.0).max(x * S::splat(1e30) * S::splat(1e8)));
    let half = S::splat(0.5);
    side.mul_add(half - tail(math::abs(x)), half) + x * density
}

/// σ(2u), which is `(1 + tanh(u))/2` and does not cancel where it is small.
#[inline(always)]
fn share<S: F32s>(x: S) -> S {
    let cubic = (x * x).mul_add(S::splat(CUBE), S::splat(1.0));
    math::sigmoid(S::splat(OUTER) * x * cubic)
}

#[inline(always)]
pub(super) fn approximate_gelu<S: F32s>(x: S) -> S {
    S::splat(-BOUND).max(x) * share(bounded(x))
}

#[inline(always)]
pub(super) fn approximate_gelu_derivative<S: F32s>(x: S) -> S {
    let x = bounded(x);
    let (s, one) = (share(x), S::splat(1.0));
    let steep = S::splat(OUTER) * (x * x).mul_add(S::splat(3.0 * CUBE), one);
    s + x * s * (one - s) * steep
}

/// The definition, in f64.
pub(super) fn exact_gelu_reference(x: f64) -> f64 {
    x * normal(x)
}

/// Its derivative.
pub(super) fn exact_gelu_reference_derivative(x: f64) -> f64 {
    normal(x) + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

/// Φ(x)
fn normal(x: f64) -> f64 {
    0.5 * (1.0 + erf(x * FRAC_1_SQRT_2))
}

/// `2/√π · exp(−z²) · Σ_n 2ⁿ z²ⁿ⁺¹ / (1·3·…·(2n+1))`: every term has one sign, so nothing cancels.
fn erf(z: f64) -> f64 {
    if z.abs() > 6.0 {
        return z.signum();
    }
    let (mut term, mut sum, mut n) = (z, z, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * z * z / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / PI.sqrt() * (-z * z).exp() * sum
}

/// The definition by the tangent, in f64.
pub(super) fn approximate_gelu_reference(x: f64) -> f64 {
    0.5 * x * (1.0 + inner(x).tanh())
}

/// Its derivative.
pub(super) fn approximate_gelu_reference_derivative(x: f64) -> f64 {
    let t = inner(x).tanh();
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x)
}

fn inner(x: f64) -> f64 {
    (2.0 / PI).sqrt() * (x + 0.044715 * x * x * x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_has_the_values_of_the_tables() {
        // Abramowitz and Stegun, table 7.1
        for (z, want) in [(0.0, 0.0), (0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (-2.0, -0.995_322_265_0)] {
            assert!((erf(z) - want).abs() < 1e-10, "erf({z}) = {}", erf(z));
        }
    }
}
