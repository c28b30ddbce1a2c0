//! A few tokens at a time over a span of channels: each input is read once, its neighbours in time are in registers.
//!
//! Rows of a power of two of channels share a set of the first-level cache, which holds fewer lines than a block has
//! rows. So every line is touched once a block, and what belongs to a channel's taps lies side by side, see [`place`].

use super::Activation;
use alluvium_core::cpu::simd::{F32s, math};
use alluvium_core::cpu::{Isa, StoreHint, prefetch};
use std::ops::Range;

/// Tokens of a block.
pub(super) const BLOCK: usize = 8;

/// The inputs of a block of tokens.
pub(super) struct Window<'a> {
    /// The inputs: `K-1` rows before the block and the block's own.
    pub(super) x: &'a [&'a [f32]],
    /// The taps, as [`place`] says.
    pub(super) w: &'a [f32],
    /// The channels to compute.
    pub(super) span: Range<usize>,
    pub(super) activation: Activation,
    /// The store of results.
    pub(super) stores: StoreHint<'a>,
}

/// Channels whose taps lie side by side: a cache line, and a multiple of every register.
const LINE: usize = 16;

/// Room for `rows` values of each channel.
pub(super) fn room(rows: usize, channels: usize) -> usize {
    rows * channels.next_multiple_of(LINE)
}

/// Where number `row` of `rows` of a channel is: `[C / 16, rows, 16]`.
#[inline(always)]
pub(super) fn place(row: usize, rows: usize, channel: usize) -> usize {
    (channel / LINE * rows + row) * LINE + channel % LINE
}

/// Puts taps, `[C, K]`, where [`place`] says. A token alone asks for it as much as a thousand do.
pub(super) fn lay_out(taps_of_channels: &[f32], taps: usize, to: &mut [f32]) {
    for (to, from) in to.chunks_exact_mut(LINE * taps).zip(taps_of_channels.chunks(LINE * taps)) {
        match (<&mut [f32; LINE * USUAL]>::try_from(&mut *to), <&[f32; LINE * USUAL]>::try_from(from)) {
            // of a length that is known when this is compiled, so that it is done in registers
            (Ok(to), Ok(from)) if taps == USUAL => {
                for (i, of_channel) in from.as_chunks::<USUAL>().0.iter().enumerate() {
                    for (k, &x) in of_channel.iter().enumerate() {
                        to[k * LINE + i] = x;
                    }
                }
            }
            _ => {
                for (i, of_channel) in from.chunks_exact(taps).enumerate() {
                    for (k, &x) in of_channel.iter().enumerate() {
                        to[k * LINE + i] = x;
                    }
                }
            }
        }
    }
}

impl Window<'_> {
    /// The number of channels. The unchecked reads below rely on every row having this many, and on a span that lies
    /// within and begins at a line, so that a register's channels lie side by side at their [`place`].
    fn channels(&self, taps: usize) -> usize {
        let channels = self.x[0].len();
        assert!(self.span.start <= self.span.end && self.span.end <= channels && self.span.start.is_multiple_of(LINE));
        assert!(self.x.iter().all(|x| x.len() == channels) && self.w.len() == room(taps, channels));
        channels
    }
}

/// The inputs and outputs of a block's gradient, besides its [`Window`].
pub(super) struct Cotangent<'a, 'b> {
    /// The gradients of the block's results.
    pub(super) dy: [&'a [f32]; BLOCK],
    /// `dz` of the `K-1` tokens before the block, as [`place`] says; leaves as that before the next.
    pub(super) before: &'a mut [f32],
    /// Sums over the block's tokens, as [`place`] says; none where the tokens belong to a neighbour.
    pub(super) dw: Option<&'a mut [f32]>,
    /// Gradients of the inputs `K-1` tokens before the block's, which are complete now; `None` where they are not
    /// needed.
    pub(super) dx: &'a mut [Option<&'b mut [f32]>],
}

/// Prefetch distance within a row: more rows are read at once than the hardware prefetcher follows.
const AHEAD: usize = 256;

/// The taps that Gated DeltaNet uses: known when the kernel is compiled, so that its loops over them unroll.
const USUAL: usize = 4;

/// Convolves [`BLOCK`] tokens, or one.
pub(super) fn forward(isa: Isa, from: &Window<'_>, taps: usize, y: &mut [f32]) {
    let (rows, channels) = (from.x.len() + 1 - taps, from.channels(taps));
    assert!((rows == 1 || rows == BLOCK) && y.len() == rows * channels);
    let single = rows == 1;
    match (taps, single) {
        (USUAL, false) => forward_usual(isa, from, y),
        (USUAL, true) => forward_one_usual(isa, from, y),
        (_, false) => forward_any(isa, from, taps, y),
        (_, true) => forward_one_any(isa, from, taps, y),
    }
}

/// The gradients that [`BLOCK`] tokens add.
pub(super) fn backward(isa: Isa, from: &Window<'_>, taps: usize, to: Cotangent<'_, '_>) {
    let channels = from.channels(taps);
    assert!(from.x.len() == taps - 1 + BLOCK && to.before.len() == room(taps - 1, channels));
    assert!(to.dy.iter().all(|dy| dy.len() == channels) && to.dx.len() == BLOCK);
    assert!(to.dx.iter().flatten().all(|dx| dx.len() == channels));
    assert!(to.dw.iter().all(|dw| dw.len() == room(taps, channels)));
    if taps == USUAL { backward_usual(isa, from, to) } else { backward_any(isa, from, taps, to) }
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
        for x in &from.x[taps - 1..] {
            prefetch(x, c + AHEAD);
        }
        let z = sums::<S, ROWS, WHOLE>(from, taps, [c, n]);
        for (r, z) in z.into_iter().enumerate() {
            let z = if from.activation == Activation::Silu { math::silu(z) } else { z };
            put::<S, WHOLE>(&mut y[r * channels + c..], n, z, from.stores);
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
    let mut dz = [S::splat(0.0); BLOCK];
    for (r, (dz, dy)) in dz.iter_mut().zip(&to.dy).enumerate() {
        *dz = read::<S, WHOLE>(dy, c, n);
        prefetch(dy, c + AHEAD);
        prefetch(from.x[taps - 1 + r], c + AHEAD);
    }
    // the inputs are needed twice, but their lines may be gone the second time
    let mut kept = [S::splat(0.0); BLOCK + USUAL - 1];
    if taps == USUAL {
        // loops of a known length: the array stays in registers
        for (j, kept) in kept.iter_mut().enumerate() {
            *kept = read::<S, WHOLE>(from.x[j], c, n);
        }
    }
    macro_rules! x_at {
        ($j:expr) => {
            if taps == USUAL { kept[$j] } else { read::<S, WHOLE>(from.x[$j], c, n) }
        };
    }
    if from.activation == Activation::Silu {
        let mut z = [S::splat(0.0); BLOCK];
        for k in 0..taps {
            let w = read::<S, WHOLE>(from.w, place(k, taps, c), n);
            for (r, z) in z.iter_mut().enumerate() {
                *z = x_at!(r + k).mul_add(w, *z);
            }
        }
        for (dz, z) in dz.iter_mut().zip(z) {
            *dz = *dz * math::silu_derivative(z);
        }
    }
    if let Some(dw) = &mut to.dw {
        for k in 0..taps {
            let mut sum = read::<S, WHOLE>(dw, place(k, taps, c), n);
            for (r, &dz) in dz.iter().enumerate() {
                sum = x_at!(k + r).mul_add(dz, sum);
            }
            write::<S, WHOLE>(dw, place(k, taps, c), n, sum);
        }
    }
    // dz of the tokens before the block and then of its own
    macro_rules! dz_at {
        ($j:expr) => {{
            let j = $j;
            if j < taps - 1 { read::<S, WHOLE>(to.before, place(j, taps - 1, c), n) } else { dz[j + 1 - taps] }
        }};
    }
    for r in 0..BLOCK {
        let mut sum = S::splat(0.0);
        for k in 0..taps {
            sum = dz_at!(r + taps - 1 - k).mul_add(read::<S, WHOLE>(from.w, place(k, taps, c), n), sum);
        }
        if let Some(dx) = &mut to.dx[r] {
            put::<S, WHOLE>(&mut dx[c..], n, sum, from.stores);
        }
    }
    for j in 0..taps - 1 {
        let next = dz_at!(j + BLOCK);
        write::<S, WHOLE>(to.before, place(j, taps - 1, c), n, next);
    }
}

/// `z` of `ROWS` tokens.
#[inline(always)]
fn sums<S: F32s, const ROWS: usize, const WHOLE: bool>(
    from: &Window<'_>,
    taps: usize,
    [c, n]: [usize; 2],
) -> [S; ROWS] {
    let mut z = [S::splat(0.0); ROWS];
    for k in 0..taps {
        let w = read::<S, WHOLE>(from.w, place(k, taps, c), n);
        for (r, z) in z.iter_mut().enumerate() {
            *z = read::<S, WHOLE>(from.x[r + k], c, n).mul_add(w, *z);
        }
    }
    z
}

/// `n` values from `at` on: a register's worth where `WHOLE`.
#[inline(always)]
fn read<S: F32s, const WHOLE: bool>(row: &[f32], at: usize, n: usize) -> S {
    if WHOLE {
        // SAFETY: the register's channels lie in the span, and `forward` and `backward` asserted the lengths and the
        // span.
        unsafe { S::load_ptr(row.as_ptr().add(at)) }
    } else {
        S::load_partial(&row[at..at + n])
    }
}

#[inline(always)]
fn write<S: F32s, const WHOLE: bool>(row: &mut [f32], at: usize, n: usize, x: S) {
    if WHOLE {
        // SAFETY: the register's channels lie in the span, and `forward` and `backward` asserted the lengths and the
        // span.
        unsafe { x.store_ptr(row.as_mut_ptr().add(at)) }
    } else {
        x.store_partial(&mut row[at..at + n]);
    }
}

/// Stores a result of `n` values to the start of a row.
#[inline(always)]
fn put<S: F32s, const WHOLE: bool>(row: &mut [f32], n: usize, x: S, stores: StoreHint<'_>) {
    if WHOLE { x.put(row, stores) } else { x.store_partial(&mut row[..n]) }
}
