//! Functions over lanes.

use super::F32s;

/// `eˣ`: within 2 units in the last place; 0 below -104, infinity above 88.73, NaN stays.
///
/// Cody and Waite's reduction by ln 2 in two parts, then a polynomial of degree 7 on ±ln 2 / 2.
#[inline(always)]
pub fn exp<S: F32s>(x: S) -> S {
    // the bounds come first: `max` and `min` then keep a NaN
    let x = S::splat(89.5).min(S::splat(-105.0).max(x));
    let n = (x * S::splat(std::f32::consts::LOG2_E)).round();
    let r = n.mul_add(S::splat(-0.693_359_4), x);
    let r = n.mul_add(S::splat(2.121_944_4e-4), r);
    let mut p = S::splat(1.984_127e-4);
    for c in [1.388_888_9e-3, 8.333_333e-3, 4.166_666_8e-2, 0.166_666_67, 0.5, 1.0, 1.0] {
        p = p.mul_add(r, S::splat(c));
    }
    p.scale_by_exp2(n)
}

/// `1 / (1 + e⁻ˣ)`: 0 and 1 at the infinities.
#[inline(always)]
pub fn sigmoid<S: F32s>(x: S) -> S {
    S::splat(1.0) / (S::splat(1.0) + exp(-x))
}

/// `x·σ(x)`: −0 at −infinity, where the product alone would be NaN.
#[inline(always)]
pub fn silu<S: F32s>(x: S) -> S {
    x.max(S::splat(-200.0)) * sigmoid(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Level;

    crate::simd! {
        fn exp_of<S>(x: &mut [f32]) {
            x.chunks_mut(S::LANES).for_each(|x| exp(S::load_head(x)).store_head(x));
        }
        fn silu_of<S>(x: &mut [f32]) {
            x.chunks_mut(S::LANES).for_each(|x| silu(S::load_head(x)).store_head(x));
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for level in Level::available() {
            for i in -8700..8870i16 {
                let x = f32::from(i) * 0.01;
                let mut got = [x];
                exp_of(level, &mut got);
                let want = f64::from(x).exp();
                let error = (f64::from(got[0]) - want).abs() / want;
                assert!(error < 2.0 * f64::from(f32::EPSILON), "{level}: exp({x}) = {} not {want}", got[0]);
            }
        }
    }

    #[test]
    fn exp_and_silu_have_their_limits() {
        for level in Level::available() {
            let mut x = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN, 0.0];
            exp_of(level, &mut x);
            assert_eq!((x[0], x[1], x[3], x[4], x[5]), (0.0, f32::INFINITY, f32::INFINITY, 0.0, 1.0), "{level}");
            assert!(x[2].is_nan());
            let mut x = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN, 0.0];
            silu_of(level, &mut x);
            assert_eq!((x[0], x[1], x[3], x[4], x[5]), (0.0, f32::INFINITY, f32::MAX, 0.0, 0.0), "{level}");
            assert!(x[2].is_nan());
        }
    }
}
