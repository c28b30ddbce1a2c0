//! A few tokens at a time over a span of channels: each input is read once, its neighbours in time are in registers.

use super::Activation;
use alluvium_core::cpu::Level;
use alluvium_core::cpu::simd::{F32s, math};
use std::ops::Range;

/// Tokens of a block.
pub(super) const BLOCK: usize = 4;

/// What a block of tokens is computed from.
pub(super) struct Window<'a> {
    /// The inputs: `K-1` rows before the block and the block's own.
    pub(super) x: &'a [&'a [f32]],
    /// The taps, `[K, C]`.
    pub(super) w: &'a [f32],
    /// The channels to compute.
    pub(super) span: Range<usize>,
    pub(super) activation: Activation,
}

/// What a block's gradient is computed from and goes to, besides its [`Window`].
pub(super) struct Cotangent<'a, 'b> {
    /// The gradients of the block's results.
    pub(super) dy: [&'a [f32]; BLOCK],
    /// `dz` of the `K-1` tokens before the block; leaves as that before the next.
    pub(super) before: &'a mut [f32],
    /// Sums over the block's tokens, `[K, C]`; none where the tokens belong to a neighbour.
    pub(super) dw: Option<&'a mut [f32]>,
    /// Gradients of the inputs `K-1` tokens before the block's, which are complete now; none where nobody wants them.
    pub(super) dx: &'a mut [Option<&'b mut [f32]>],
}

/// The taps that Gated DeltaNet uses: known when the kernel is compiled, so that its loops over them unroll.
const USUAL: usize = 4;

/// Convolves [`BLOCK`] tokens, or one.
pub(super) fn forward(level: Level, from: &Window<'_>, taps: usize, y: &mut [f32]) {
    let single = from.x.len() == taps;
    match (taps, single) {
        (USUAL, false) => forward_usual(level, from, y),
        (USUAL, true) => forward_one_usual(level, from, y),
        (_, false) => forward_any(level, from, taps, y),
        (_, true) => forward_one_any(level, from, taps, y),
    }
}

/// The gradients that [`BLOCK`] tokens add.
pub(super) fn backward(level: Level, from: &Window<'_>, taps: usize, to: Cotangent<'_, '_>) {
    if taps == USUAL { backward_usual(level, from, to) } else { backward_any(level, from, taps, to) }
}

alluvium_core::simd! {
    fn forward_usual<S>(from: &Window<'_>, y: &mut [f32]) {
        tokens::<S, BLOCK>(from, USUAL, y);
    }
    fn forward_one_usual<S>(from: &Window<'_>, y: &mut [f32]) {
        tokens::<S, 1>(from, USUAL, y);
    }
    fn forward_any<S>(from: &Window<'_>, taps: usize, y: &mut [f32]) {
        tokens::<S, BLOCK>(from, taps, y);
    }
    fn forward_one_any<S>(from: &Window<'_>, taps: usize, y: &mut [f32]) {
        tokens::<S, 1>(from, taps, y);
    }
    fn backward_usual<S>(from: &Window<'_>, to: Cotangent<'_, '_>) {
        gradients::<S>(from, USUAL, to);
    }
    fn backward_any<S>(from: &Window<'_>, taps: usize, to: Cotangent<'_, '_>) {
        gradients::<S>(from, taps, to);
    }
}

/// Runs `$step::<S, WHOLE>` at each register's worth of channels of a span; the last may be cut short.
macro_rules! over_channels {
    ($span:expr, $lanes:expr, |$c:ident, $whole:ident| $step:expr) => {{
        let (span, lanes) = ($span, $lanes);
        let end = span.start + (span.len() - span.len() % lanes);
        for $c in (span.start..end).step_by(lanes) {
            const $whole: bool = true;
            $step;
        }
        if end < span.end {
            const $whole: bool = false;
            let $c = end;
            $step;
        }
    }};
}

#[inline(always)]
fn tokens<S: F32s, const ROWS: usize>(from: &Window<'_>, taps: usize, y: &mut [f32]) {
    let channels = y.len() / ROWS;
    over_channels!(from.span.clone(), S::LANES, |c, WHOLE| {
        let z = sums::<S, ROWS, WHOLE>(from, taps, channels, c);
        for (r, z) in z.into_iter().enumerate() {
            let y = &mut y[r * channels..][..channels];
            write::<S, WHOLE>(y, c, if from.activation == Activation::Silu { math::silu(z) } else { z });
        }
    });
}

#[inline(always)]
fn gradients<S: F32s>(from: &Window<'_>, taps: usize, mut to: Cotangent<'_, '_>) {
    over_channels!(from.span.clone(), S::LANES, |c, WHOLE| gradient::<S, WHOLE>(from, taps, &mut to, c));
}

#[inline(always)]
fn gradient<S: F32s, const WHOLE: bool>(from: &Window<'_>, taps: usize, to: &mut Cotangent<'_, '_>, c: usize) {
    let channels = from.w.len() / taps;
    let at = |k: usize| k * channels..(k + 1) * channels;
    let mut dz: [S; BLOCK] = std::array::from_fn(|r| read::<S, WHOLE>(to.dy[r], c));
    if from.activation == Activation::Silu {
        let z = sums::<S, BLOCK, WHOLE>(from, taps, channels, c);
        dz = std::array::from_fn(|r| dz[r] * slope(z[r]));
    }
    if let Some(dw) = &mut to.dw {
        for k in 0..taps {
            let mut sum = read::<S, WHOLE>(&dw[at(k)], c);
            for (r, &dz) in dz.iter().enumerate() {
                sum = read::<S, WHOLE>(from.x[r + k], c).mul_add(dz, sum);
            }
            write::<S, WHOLE>(&mut dw[at(k)], c, sum);
        }
    }
    // dz of the tokens before the block and then of its own
    macro_rules! dz_at {
        ($j:expr) => {{
            let j = $j;
            if j < taps - 1 { read::<S, WHOLE>(&to.before[at(j)], c) } else { dz[j - (taps - 1)] }
        }};
    }
    for r in 0..BLOCK {
        let mut sum = S::splat(0.0);
        for k in 0..taps {
            sum = dz_at!(r + taps - 1 - k).mul_add(read::<S, WHOLE>(&from.w[at(k)], c), sum);
        }
        if let Some(dx) = &mut to.dx[r] {
            write::<S, WHOLE>(dx, c, sum);
        }
    }
    for j in 0..taps - 1 {
        let next = dz_at!(j + BLOCK);
        write::<S, WHOLE>(&mut to.before[at(j)], c, next);
    }
}

/// `z` of `ROWS` tokens.
#[inline(always)]
fn sums<S: F32s, const ROWS: usize, const WHOLE: bool>(
    from: &Window<'_>,
    taps: usize,
    channels: usize,
    c: usize,
) -> [S; ROWS] {
    let mut z = [S::splat(0.0); ROWS];
    for k in 0..taps {
        let w = read::<S, WHOLE>(&from.w[k * channels..(k + 1) * channels], c);
        for (r, z) in z.iter_mut().enumerate() {
            *z = read::<S, WHOLE>(from.x[r + k], c).mul_add(w, *z);
        }
    }
    z
}

/// The derivative of `z·σ(z)`; the bounds keep infinities from meeting zeros.
#[inline(always)]
fn slope<S: F32s>(z: S) -> S {
    let z = S::splat(200.0).min(S::splat(-200.0).max(z));
    let (one, s) = (S::splat(1.0), math::sigmoid(z));
    s * (z * (one - s) + one)
}

#[inline(always)]
fn read<S: F32s, const WHOLE: bool>(row: &[f32], c: usize) -> S {
    if WHOLE { S::load(&row[c..]) } else { S::load_head(&row[c..]) }
}

#[inline(always)]
fn write<S: F32s, const WHOLE: bool>(row: &mut [f32], c: usize, x: S) {
    if WHOLE { x.store(&mut row[c..]) } else { x.store_head(&mut row[c..]) }
}
