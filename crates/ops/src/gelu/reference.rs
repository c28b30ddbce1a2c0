//! The definition and its derivative, in f64.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

pub(super) fn value(x: f64) -> f64 {
    x * normal(x)
}

pub(super) fn slope(x: f64) -> f64 {
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
