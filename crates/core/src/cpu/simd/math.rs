//! Exponential, sigmoid and SiLU over SIMD registers.

use super::F32s;

/// `eˣ`: within 2 units in the last place; 0 below -104, infinity above 88.73, NaN stays.
///
/// Cody and Waite's reduction by ln 2 in two parts, then `1 + r + r²·q(r)` with the `q` of degree 4 whose largest
/// relative error on ±ln 2 / 2 is smallest: 4·10⁻⁹, a sixteenth of a rounding.
#[inline(always)]
pub fn exp<S: F32s>(x: S) -> S {
    // the bounds come first: `max` and `min` then keep a NaN
    exp_between(S::splat(89.5).min(S::splat(-105.0).max(x)))
}

/// As [`exp`], for `x` from -105 to 89.5, or NaN.
#[inline(always)]
pub fn exp_between<S: F32s>(x: S) -> S {
    let n = (x * S::splat(std::f32::consts::LOG2_E)).round();
    let r = n.mul_add(S::splat(-0.693_359_4), x);
    let r = n.mul_add(S::splat(2.121_944_4e-4), r);
    let mut p = S::splat(1.381_454e-3);
    for c in [8.368_745e-3, 4.166_839e-2, 0.166_665_21, 0.499_999_94, 1.0, 1.0] {
        p = p.mul_add(r, S::splat(c));
    }
    p.scale_by_exp2(n)
}

/// `1 / (1 + e⁻ˣ)`: 0 and 1 at the infinities.
#[inline(always)]
pub fn sigmoid<S: F32s>(x: S) -> S {
    (S::splat(1.0) + exp(-x)).recip()
}

/// `x·σ(x)`: −0 at −infinity, where the product alone would be NaN.
#[inline(always)]
pub fn silu<S: F32s>(x: S) -> S {
    x.max(S::splat(-200.0)) * sigmoid(x)
}

/// `x·σ(x)` and its derivative `σ(x)·(1 + x·(1 − σ(x)))`, from one exponential; (−0, 0) and (infinity, 1) at the
/// infinities.
#[inline(always)]
pub fn silu_and_derivative<S: F32s>(x: S) -> (S, S) {
    let one = S::splat(1.0);
    let e = exp(-x);
    let s = (one + e).recip();
    // 1 − σ as e·σ, so that nothing cancels; the bounds keep a factor of 0 from meeting an infinity
    let low = S::splat(-200.0).max(x);
    let rest = S::splat(f32::MAX).min(e) * s;
    let derivative = s * S::splat(200.0).min(low).mul_add(rest, one);
    (low * s, derivative)
}

/// The derivative of `x·σ(x)` alone: in fewer steps than [`silu_and_derivative`], but only within
/// 10⁻⁷ of `1 + |x|`.
#[inline(always)]
pub fn silu_derivative<S: F32s>(x: S) -> S {
    let (one, x) = (S::splat(1.0), S::splat(104.0).min(S::splat(-89.5).max(x)));
    let s = (one + exp_between(-x)).recip();
    s * x.mul_add(one - s, one)
}

/// `log(1 + eˣ)`, without overflow: 0 and infinity at the infinities.
#[inline(always)]
pub fn softplus<S: F32s>(x: S) -> S {
    // log(1 + e) = 2·atanh(r) with r = e / (2 + e) at most 1/3, where the series converges fast
    let e = exp(-abs(x));
    let r = e * (e + S::splat(2.0)).recip();
    let square = r * r;
    let mut p = S::splat(1.0 / 15.0);
    for c in [1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 0.2, 1.0 / 3.0, 1.0] {
        p = p.mul_add(square, S::splat(c));
    }
    (r + r).mul_add(p, S::splat(0.0).max(x))
}

/// `1 − erf(z)` for z ≥ 0: within a few units of 10⁻⁷ of its own size as long as that is more than 10⁻⁶.
///
/// A Chebyshev fit: Press et al., Numerical Recipes, `erfcc`.
#[inline(always)]
pub fn erfc_positive<S: F32s>(z: S) -> S {
    let t = z.mul_add(S::splat(0.5), S::splat(1.0)).recip();
    let mut p = S::splat(0.170_872_77);
    for c in [
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ] {
        p = p.mul_add(t, S::splat(c));
    }
    t * exp(p - z * z)
}

/// The absolute value.
#[inline(always)]
pub fn abs<S: F32s>(x: S) -> S {
    x.max(-x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;

    crate::simd! {
        fn exp_of<S>(x: &mut [f32]) {
            x.chunks_mut(S::LANES).for_each(|x| exp(S::load_partial(x)).store_partial(x));
        }
        fn silu_of<S>(x: &mut [f32]) {
            x.chunks_mut(S::LANES).for_each(|x| silu(S::load_partial(x)).store_partial(x));
        }
        fn silu_slope_of<S>(x: &mut [f32]) {
            x.chunks_mut(S::LANES).for_each(|x| silu_and_derivative(S::load_partial(x)).1.store_partial(x));
        }
        fn softplus_of<S>(x: &mut [f32]) {
            x.chunks_mut(S::LANES).for_each(|x| softplus(S::load_partial(x)).store_partial(x));
        }
        fn recip_of<S>(x: &mut [f32]) {
            x.chunks_mut(S::LANES).for_each(|x| S::load_partial(x).recip().store_partial(x));
        }
        fn erfc_of<S>(x: &mut [f32]) {
            x.chunks_mut(S::LANES).for_each(|x| erfc_positive(S::load_partial(x)).store_partial(x));
        }
    }

    #[test]
    fn the_slope_of_silu_and_softplus_are_accurate_to_their_own_size() {
        for isa in Isa::available() {
            for i in -8000..8000i16 {
                let x = f32::from(i) * 0.01;
                let (wide, e) = (f64::from(x), (-f64::from(x)).exp());
                let (mut derivative, mut plus) = ([x], [x]);
                silu_slope_of(isa, &mut derivative);
                softplus_of(isa, &mut plus);
                let want = (1.0 + wide * e / (1.0 + e)) / (1.0 + e);
                let size = (1.0 + wide.abs()) / (1.0 + e);
                assert!(
                    (f64::from(derivative[0]) - want).abs() < 6e-7 * size,
                    "{isa}: silu'({x}) = {} not {want}",
                    derivative[0]
                );
                let want = wide.exp().ln_1p();
                assert!(
                    (f64::from(plus[0]) - want).abs() < 5e-7 * want,
                    "{isa}: softplus({x}) = {} not {want}",
                    plus[0]
                );
            }
        }
    }

    #[test]
    fn erfc_has_the_values_of_the_tables() {
        // Abramowitz and Stegun, table 7.1
        let table = [(0.0, 1.0), (0.5, 0.479_500_122), (1.0, 0.157_299_207), (2.0, 0.004_677_735), (3.0, 2.209e-5)];
        for isa in Isa::available() {
            for (z, want) in table {
                let mut got = [z];
                erfc_of(isa, &mut got);
                assert!((f64::from(got[0]) - want).abs() < 5e-7 * want + 3e-9, "{isa}: erfc({z}) = {}", got[0]);
            }
        }
    }

    #[test]
    fn slopes_have_their_limits() {
        for isa in Isa::available() {
            let all = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN, 0.0];
            let (mut derivative, mut plus) = (all, all);
            silu_slope_of(isa, &mut derivative);
            assert_eq!(
                (derivative[0], derivative[1], derivative[3], derivative[4], derivative[5]),
                (0.0, 1.0, 1.0, 0.0, 0.5),
                "{isa}"
            );
            softplus_of(isa, &mut plus);
            assert_eq!((plus[0], plus[1], plus[3], plus[4]), (0.0, f32::INFINITY, f32::MAX, 0.0), "{isa}");
            assert!(derivative[2].is_nan() && plus[2].is_nan());
        }
    }

    #[test]
    fn a_reciprocal_is_within_two_units_in_the_last_place_and_has_its_limits() {
        for isa in Isa::available() {
            // every 1021st number from the smallest whose reciprocal is normal to the largest
            for bits in (f32::MIN_POSITIVE.to_bits()..2f32.powi(126).to_bits()).step_by(1021) {
                let mut got = [f32::from_bits(bits), -f32::from_bits(bits)];
                recip_of(isa, &mut got);
                let want = f64::from(f32::from_bits(bits)).recip();
                for error in [(f64::from(got[0]) - want) / want, (f64::from(got[1]) + want) / want] {
                    assert!(error.abs() < 2.0 * f64::from(f32::EPSILON), "{isa}: {} for {want}", got[0]);
                }
            }
            let mut limits = [0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX];
            recip_of(isa, &mut limits);
            assert_eq!(limits[..3], [f32::INFINITY, 0.0, 0.0], "{isa}");
            assert!(limits[3].is_nan() && limits[4] < f32::MIN_POSITIVE, "{isa}");
        }
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for isa in Isa::available() {
            for i in -8700..8870i16 {
                let x = f32::from(i) * 0.01;
                let mut got = [x];
                exp_of(isa, &mut got);
                let want = f64::from(x).exp();
                let error = (f64::from(got[0]) - want).abs() / want;
                assert!(error < 2.0 * f64::from(f32::EPSILON), "{isa}: exp({x}) = {} not {want}", got[0]);
            }
        }
    }

    #[test]
    fn exp_and_silu_have_their_limits() {
        for isa in Isa::available() {
            let mut x = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN, 0.0];
            exp_of(isa, &mut x);
            assert_eq!((x[0], x[1], x[3], x[4], x[5]), (0.0, f32::INFINITY, f32::INFINITY, 0.0, 1.0), "{isa}");
            assert!(x[2].is_nan());
            let mut x = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN, 0.0];
            silu_of(isa, &mut x);
            assert_eq!((x[0], x[1], x[3], x[4], x[5]), (0.0, f32::INFINITY, f32::MAX, 0.0, 0.0), "{isa}");
            assert!(x[2].is_nan());
        }
    }
}
