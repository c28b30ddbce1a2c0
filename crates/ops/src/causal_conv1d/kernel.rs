//! A few tokens at a time over a span of channels: each input is read once, its neighbours in time are in registers.

use super::Activation;
use alluvium_core::cpu::Level;
use alluvium_core::cpu::simd::{F32s, math};
use std::ops::Range;

/// Tokens of a block.
pub(super) const BLOCK: usize = 8;

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

impl Window<'_> {
    /// The number of channels; the unchecked reads below lean on every row having so many and the span lying in them.
    fn channels(&self, taps: usize) -> usize {
        let channels = self.w.len() / taps;
        assert!(self.span.start <= self.span.end && self.span.end <= channels && self.w.len() == taps * channels);
        assert!(self.x.iter().all(|x| x.len() == channels));
        channels
    }
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
    let (rows, channels) = (from.x.len() + 1 - taps, from.channels(taps));
    assert!((rows == 1 || rows == BLOCK) && y.len() == rows * channels);
    let single = rows == 1;
    match (taps, single) {
        (USUAL, false) => forward_usual(level, from, y),
        (USUAL, true) => forward_one_usual(level, from, y),
        (_, false) => forward_any(level, from, taps, y),
        (_, true) => forward_one_any(level, from, taps, y),
    }
}

/// The gradients that [`BLOCK`] tokens add.
pub(super) fn backward(level: Level, from: &Window<'_>, taps: usize, to: Cotangent<'_, '_>) {
    let channels = from.channels(taps);
    assert!(from.x.len() == taps - 1 + BLOCK && to.before.len() == (taps - 1) * channels);
    assert!(to.dy.iter().all(|dy| dy.len() == channels) && to.dx.len() == BLOCK);
    assert!(to.dx.iter().flatten().all(|dx| dx.len() == channels));
    assert!(to.dw.iter().all(|dw| dw.len() == taps * channels));
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
    ($span:expr, $lanes:expr, |$c:ident, $n:ident, $whole:ident| $step:expr) => {{
        let (span, lanes) = ($span, $lanes);
        let end = span.start + (span.len() - span.len() % lanes);
        for $c in (span.start..end).step_by(lanes) {
            const $whole: bool = true;
            let $n = lanes;
            $step;
        }
        if end < span.end {
            const $whole: bool = false;
            let ($c, $n) = (end, span.end - end);
            $step;
        }
    }};
}

#[inline(always)]
fn tokens<S: F32s, const ROWS: usize>(from: &Window<'_>, taps: usize, y: &mut [f32]) {
    let channels = y.len() / ROWS;
    over_channels!(from.span.clone(), S::LANES, |c, n, WHOLE| {
        let z = sums::<S, ROWS, WHOLE>(from, taps, channels, [c, n]);
        for (r, z) in z.into_iter().enumerate() {
            write::<S, WHOLE>(
                y,
                r * channels + c,
                n,
                if from.activation == Activation::Silu { math::silu(z) } else { z },
            );
        }
    });
}

#[inline(always)]
fn gradients<S: F32s>(from: &Window<'_>, taps: usize, mut to: Cotangent<'_, '_>) {
    over_channels!(from.span.clone(), S::LANES, |c, n, WHOLE| gradient::<S, WHOLE>(from, taps, &mut to, [c, n]));
}

#[inline(always)]
fn gradient<S: F32s, const WHOLE: bool>(
    from: &Window<'_>,
    taps: usize,
    to: &mut Cotangent<'_, '_>,
    [c, n]: [usize; 2],
) {
    let channels = from.w.len() / taps;
    let mut dz = [S::splat(0.0); BLOCK];
    for (dz, dy) in dz.iter_mut().zip(&to.dy) {
        *dz = read::<S, WHOLE>(dy, c, n);
    }
    if from.activation == Activation::Silu {
        let z = sums::<S, BLOCK, WHOLE>(from, taps, channels, [c, n]);
        for (dz, z) in dz.iter_mut().zip(z) {
            *dz = *dz * math::silu_with_slope(z).1;
        }
    }
    if let Some(dw) = &mut to.dw {
        for k in 0..taps {
            let mut sum = read::<S, WHOLE>(dw, k * channels + c, n);
            for (x, &dz) in from.x[k..k + BLOCK].iter().zip(&dz) {
                sum = read::<S, WHOLE>(x, c, n).mul_add(dz, sum);
            }
            write::<S, WHOLE>(dw, k * channels + c, n, sum);
        }
    }
    // dz of the tokens before the block and then of its own
    macro_rules! dz_at {
        ($j:expr) => {{
            let j = $j;
            if j < taps - 1 { read::<S, WHOLE>(to.before, j * channels + c, n) } else { dz[j + 1 - taps] }
        }};
    }
    for r in 0..BLOCK {
        let mut sum = S::splat(0.0);
        for k in 0..taps {
            sum = dz_at!(r + taps - 1 - k).mul_add(read::<S, WHOLE>(from.w, k * channels + c, n), sum);
        }
        if let Some(dx) = &mut to.dx[r] {
            write::<S, WHOLE>(dx, c, n, sum);
        }
    }
    for j in 0..taps - 1 {
        let next = dz_at!(j + BLOCK);
        write::<S, WHOLE>(to.before, j * channels + c, n, next);
    }
}

/// `z` of `ROWS` tokens.
#[inline(always)]
fn sums<S: F32s, const ROWS: usize, const WHOLE: bool>(
    from: &Window<'_>,
    taps: usize,
    channels: usize,
    [c, n]: [usize; 2],
) -> [S; ROWS] {
    let mut z = [S::splat(0.0); ROWS];
    for k in 0..taps {
        let w = read::<S, WHOLE>(from.w, k * channels + c, n);
        for (r, z) in z.iter_mut().enumerate() {
            *z = read::<S, WHOLE>(from.x[r + k], c, n).mul_add(w, *z);
        }
    }
    z
}

/// `n` numbers from `at` on: a register's worth where `WHOLE`.
#[inline(always)]
fn read<S: F32s, const WHOLE: bool>(row: &[f32], at: usize, n: usize) -> S {
    if WHOLE {
        debug_assert!(at + S::LANES <= row.len());
        // SAFETY: `at` is in the span of a row, and `forward` and `backward` have asserted the rows' lengths.
        unsafe { S::load_ptr(row.as_ptr().add(at)) }
    } else {
        S::load_head(&row[at..at + n])
    }
}

#[inline(always)]
fn write<S: F32s, const WHOLE: bool>(row: &mut [f32], at: usize, n: usize, x: S) {
    if WHOLE {
        debug_assert!(at + S::LANES <= row.len());
        // SAFETY: `at` is in the span of a row, and `forward` and `backward` have asserted the rows' lengths.
        unsafe { x.store_ptr(row.as_mut_ptr().add(at)) }
    } else {
        x.store_head(&mut row[at..at + n]);
    }
}
