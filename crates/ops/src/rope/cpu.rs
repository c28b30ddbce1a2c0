//! Threads over tokens; the angles of a token are computed once and shared by its heads.

use super::{Pairs, Rope, Rotation};
use crate::common::InlineVec;
use alluvium_core::cpu::Cpu;
use alluvium_core::{Result, Tensor};
use rayon::prelude::*;

/// Pairs of values of a head that usually turn, at most.
const PAIRS: usize = 128;

pub(super) fn rotate(cpu: &Cpu, x: &Tensor, positions: &Tensor, turn: Rope, way: Rotation) -> Result<Tensor> {
    let (width, isa) = (x.shape().last(), cpu.isa());
    let (xs, positions) = (cpu.read(x)?, positions.slice::<u32>()?);
    let token = xs.len() / positions.len();
    let pairs = turn.dims / 2;
    let mut frequencies: InlineVec<f64, PAIRS> = InlineVec::new(pairs, 0.0);
    frequencies.iter_mut().enumerate().for_each(|(i, f)| *f = turn.frequency(i));
    let sign = if way == Rotation::Forward { 1.0 } else { -1.0 };
    let magnitude = f64::from(turn.magnitude());

    let mut y = cpu.buffer(xs.len())?;
    let grain = cpu.grain(positions.len(), token + 16 * pairs);
    cpu.run(|| {
        y.par_chunks_mut(grain * token).zip(xs.par_chunks(grain * token)).zip(positions.par_chunks(grain)).for_each(
            |((y, x), positions)| {
                let mut angles = Angles { cos: InlineVec::new(pairs, 0.0), sin: InlineVec::new(pairs, 0.0) };
                for ((y, x), &position) in y.chunks_exact_mut(token).zip(x.chunks_exact(token)).zip(positions) {
                    angles.turn(&frequencies, sign * f64::from(position), magnitude);
                    match turn.pairs {
                        Pairs::Halves => heads(isa, x, width, &angles, y),
                        Pairs::Neighbours => neighbours(x, width, &angles, y),
                    }
                }
            },
        );
    });
    cpu.tensor(y, x.shape(), x.dtype())
}

/// The cosines and sines of one token's angles.
struct Angles {
    cos: InlineVec<f32, PAIRS>,
    sin: InlineVec<f32, PAIRS>,
}

impl Angles {
    fn turn(&mut self, frequencies: &[f64], position: f64, magnitude: f64) {
        for ((cos, sin), frequency) in self.cos.iter_mut().zip(&mut self.sin[..]).zip(frequencies) {
            let (s, c) = (position * frequency).sin_cos();
            (*cos, *sin) = ((magnitude * c) as f32, (magnitude * s) as f32);
        }
    }
}

/// Turns all heads of one token whose pairs are neighbours.
fn neighbours(x: &[f32], width: usize, angles: &Angles, y: &mut [f32]) {
    let turning = 2 * angles.cos.len();
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let angles = angles.cos.iter().zip(&angles.sin[..]);
        for ((x, y), (&cos, &sin)) in x.chunks_exact(2).zip(y.chunks_exact_mut(2)).zip(angles) {
            y[0] = x[0] * cos - x[1] * sin;
            y[1] = x[0] * sin + x[1] * cos;
        }
        y[turning..].copy_from_slice(&x[turning..]);
    }
}

alluvium_core::simd! {
    /// Turns all heads of one token whose pairs are half of the turning part apart.
    fn heads<S>(x: &[f32], width: usize, angles: &Angles, y: &mut [f32]) {
        let pairs = angles.cos.len();
        let whole = pairs - pairs % S::LANES;
        for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            let ((x0, rest), (y0, kept)) = (x.split_at(pairs), y.split_at_mut(pairs));
            let ((x1, rest), (y1, kept)) = (rest.split_at(pairs), kept.split_at_mut(pairs));
            for i in (0..whole).step_by(S::LANES) {
                let (cos, sin) = (S::load(&angles.cos[i..]), S::load(&angles.sin[i..]));
                let (a, b) = (S::load(&x0[i..]), S::load(&x1[i..]));
                (a * cos - b * sin).store(&mut y0[i..]);
                (a * sin + b * cos).store(&mut y1[i..]);
            }
            let (cos, sin) = (S::load_partial(&angles.cos[whole..]), S::load_partial(&angles.sin[whole..]));
            let (a, b) = (S::load_partial(&x0[whole..]), S::load_partial(&x1[whole..]));
            (a * cos - b * sin).store_partial(&mut y0[whole..]);
            (a * sin + b * cos).store_partial(&mut y1[whole..]);
            kept.copy_from_slice(rest);
        }
    }
}
