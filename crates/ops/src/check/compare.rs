//! The distance of an array from its reference.

use crate::op::Tolerance;

/// Elements smaller than this are not compared relative to themselves: they, or the factors they are products of, come
/// near the smallest normal f32.
const TINY: f64 = 1e-30;

/// The distance of a tensor from its reference.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gap {
    /// ‖got − want‖ / ‖want‖.
    pub relative: f64,
    /// The largest |got − want| over the root mean square of the reference, or over an eighth of the element itself
    /// where that is more: a storage rounds each element to its own size.
    pub worst: f64,
    /// The largest |got − want| / |want|; elements below 1e-30 are measured against that much.
    pub each: f64,
    /// Where `worst` is.
    pub at: usize,
    /// The element that came there, and the expected one.
    pub pair: (f64, f64),
}

impl Gap {
    /// Whether it is within a tolerance.
    pub fn within(self, tolerance: Tolerance) -> bool {
        self.relative <= tolerance.relative && self.worst <= tolerance.worst
    }

    /// The larger of both.
    pub fn worse(self, other: Gap) -> Gap {
        let (relative, base) =
            (self.relative.max(other.relative), if self.worst >= other.worst { self } else { other });
        Gap { relative, each: self.each.max(other.each), ..base }
    }
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (got, want) = self.pair;
        write!(
            f,
            "relative L2 {:.1e}, worst element {:.1e} (at {}: {got} for {want})",
            self.relative, self.worst, self.at
        )
    }
}

/// Compares element by element. An element that is not finite has an infinite distance unless both are equal.
///
/// `floor` is the smallest root mean square that distances are divided by: with random sizes the terms of a gradient
/// may cancel, and only their roundings remain.
pub fn compare(got: &[f64], want: &[f64], floor: f64) -> Gap {
    if got.len() != want.len() {
        return Gap { relative: f64::INFINITY, worst: f64::INFINITY, each: f64::INFINITY, ..Gap::default() };
    }
    let mut gap = Gap::default();
    let mut error = 0.0;
    let rms = (want.iter().filter(|w| w.is_finite()).map(|w| w * w).sum::<f64>() / want.len().max(1) as f64)
        .sqrt()
        .max(floor);
    for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
        let difference = match (got - want).abs() {
            _ if got == want => 0.0,
            d if d.is_finite() => d,
            _ => f64::INFINITY,
        };
        error += difference * difference;
        if difference > 0.0 {
            gap.each = gap.each.max(difference / want.abs().max(TINY));
        }
        let own = if want.is_finite() { want.abs() / 8.0 } else { 0.0 };
        let worst = if difference == 0.0 { 0.0 } else { difference / rms.max(own) };
        if worst > gap.worst || at == 0 {
            gap = Gap { worst, at, pair: (got, want), ..gap };
        }
    }
    gap.relative = if error == 0.0 { 0.0 } else { error.sqrt() / (rms * (want.len() as f64).sqrt()) };
    gap
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_an_unwritten_element_and_a_short_result_are_infinitely_far() {
        for got in [&[1.0, f64::NAN][..], &[f64::INFINITY, 2.0], &[1.0]] {
            assert!(!compare(got, &[1.0, 2.0], 0.0).within(Tolerance { relative: 1e9, worst: 1e9, matrix_units: 0.0 }));
        }
    }

    #[test]
    fn a_small_element_beside_a_large_one_is_measured_against_itself() {
        let gap = compare(&[1.0, 1.1e-9, 0.0], &[1.0, 1e-9, 0.0], 0.0);
        assert!((gap.each - 0.1).abs() < 1e-6 && gap.worst < 1e-9);
    }

    #[test]
    fn the_gap_is_scaled_to_the_reference() {
        let gap = compare(&[3.0, 4.4], &[3.0, 4.0], 0.0);
        assert!((gap.relative - 0.08).abs() < 1e-12);
        assert!((gap.worst - 0.4 / 12.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(compare(&[0.0], &[0.0], 0.0), Gap::default());
        assert!(compare(&[1e-30], &[0.0], 0.0).relative.is_infinite());
        let want: Vec<f64> = (0..400).map(|i| if i == 7 { 80.0 } else { 0.0 }).collect();
        let got: Vec<f64> = want.iter().map(|w| w * 1.5).collect();
        assert!((compare(&got, &want, 0.0).worst - 4.0).abs() < 1e-12);
    }
}
