//! The definition, in plain loops and f64. Every other path is measured against this one, so it never grows a fast
//! case.

use super::{Pairs, Rope, RopeScaling};
use crate::op::Array;

pub(crate) fn forward(x: &Array, positions: &Array, turn: Rope) -> Array {
    rotate(x, positions, turn, 1.0)
}

pub(super) fn gradient(dy: &Array, positions: &Array, turn: Rope) -> Array {
    rotate(dy, positions, turn, -1.0)
}

/// As the frequency's definition in the source says it: by wavelengths, case by case.
fn frequency(turn: &Rope, i: usize) -> f64 {
    let plain = f64::from(turn.theta).powf(-2.0 * i as f64 / turn.dims as f64);
    match turn.scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear { factor } => plain / f64::from(factor),
        RopeScaling::Llama3 { factor, low, high, original } => {
            let [factor, low, high, original] = [factor, low, high, original].map(f64::from);
            let wavelength = 2.0 * std::f64::consts::PI / plain;
            if wavelength > original / low {
                plain / factor
            } else if wavelength < original / high {
                plain
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                (1.0 - smooth) * plain / factor + smooth * plain
            }
        }
        RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
            let dims = turn.dims as f64;
            let correction = |rotations: f32| {
                let positions = f64::from(original) / (f64::from(rotations) * 2.0 * std::f64::consts::PI);
                dims * positions.ln() / (2.0 * f64::from(turn.theta).ln())
            };
            let (mut low, mut high) = (correction(beta_fast), correction(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(dims - 1.0));
            if low == high {
                high += 0.001;
            }
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let [interpolated, extrapolated] = [plain / f64::from(factor), plain];
            interpolated * ramp + extrapolated * (1.0 - ramp)
        }
    }
}

fn rotate(x: &Array, positions: &Array, turn: Rope, way: f64) -> Array {
    let mut y = x.clone();
    let heads = x.shape[2];
    let half = turn.dims / 2;
    let magnitude = match turn.scaling {
        RopeScaling::Yarn { attention_factor, .. } => f64::from(attention_factor),
        _ => 1.0,
    };
    for (row, x) in x.rows().enumerate() {
        let y = &mut y.data[row * x.len()..][..x.len()];
        for i in 0..half {
            let (sin, cos) = (way * positions.data[row / heads] * frequency(&turn, i)).sin_cos();
            let (a, b) = if turn.pairs == Pairs::Halves { (i, i + half) } else { (2 * i, 2 * i + 1) };
            y[a] = magnitude * (x[a] * cos - x[b] * sin);
            y[b] = magnitude * (x[a] * sin + x[b] * cos);
        }
    }
    y
}
