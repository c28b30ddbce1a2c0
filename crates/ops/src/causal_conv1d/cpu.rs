//! Threads over stretches of tokens; in each, spans of channels that stay in cache while a block slides along time.

use super::kernel::{self, BLOCK, Cotangent, Window, place, room};
use super::{Saved, Sequences};
use crate::common::InlineVec;
use alluvium_core::cpu::{Buffer, Cpu, Floats, NonTemporalWriter, StoreHint};
use alluvium_core::{Result, Tensor};
use std::ops::Range;

/// Channels of a span: long enough to stream, and what a block needs of them fits the second cache.
const SPAN: usize = 2048;
/// The tokens are cut into about this many parts for any number of threads, so that `dw` is bit-identical.
const PARTS: usize = 32;
/// Tokens below which a part is not worth a thread.
const SMALLEST: usize = 64;

/// The arguments in f32, seen as rows of channels.
struct ConvRows<'a> {
    x: Floats<'a>,
    /// As [`place`] says.
    w: Buffer<f32>,
    state: Option<Floats<'a>>,
    zeros: Buffer<f32>,
    sequences: &'a Sequences,
    channels: usize,
    taps: usize,
}

/// Tokens of one sequence. The first is a multiple of [`BLOCK`].
struct Run {
    sequence: usize,
    tokens: Range<usize>,
}

impl<'a> ConvRows<'a> {
    fn new(cpu: &Cpu, saved: &'a Saved) -> Result<Self> {
        let (channels, taps) = (saved.w.shape()[0], saved.w.shape()[1]);
        let by_channel = cpu.read(&saved.w)?;
        let mut w = cpu.buffer(room(taps, channels))?;
        kernel::lay_out(&by_channel, taps, &mut w);
        Ok(ConvRows {
            x: cpu.read(&saved.x)?,
            w,
            state: saved.state.as_ref().map(|state| cpu.read(state)).transpose()?,
            zeros: cpu.zeros(channels)?,
            sequences: &saved.sequences,
            channels,
            taps,
        })
    }

    /// Input `token - (K-1)` of a sequence: of the state or zeros before the start, zeros past the end.
    fn delayed(&self, sequence: usize, token: usize) -> &[f32] {
        let (rows, before) = (self.sequences.rows(sequence), self.taps - 1);
        let (from, row) = match token.checked_sub(before) {
            Some(token) if token < rows.len() => (&self.x[..], rows.start + token),
            Some(_) => (&self.zeros[..], 0),
            None => match &self.state {
                Some(state) => (&state[..], sequence * before + token),
                None => (&self.zeros[..], 0),
            },
        };
        &from[row * self.channels..][..self.channels]
    }

    /// Cuts the sequences into parts of about equal numbers of tokens.
    fn parts(&self) -> Vec<Vec<Run>> {
        let tokens = self.x.len() / self.channels;
        let each = tokens.div_ceil(PARTS).max(SMALLEST).max(self.taps);
        let (mut parts, mut part, mut filled) = (Vec::new(), Vec::new(), 0);
        for (sequence, rows) in self.sequences.iter().enumerate() {
            let mut first = 0;
            while first < rows.len() {
                let last = rows.len().min(first + (each - filled).next_multiple_of(BLOCK));
                part.push(Run { sequence, tokens: first..last });
                filled += last - first;
                first = last;
                if filled >= each {
                    parts.push(std::mem::take(&mut part));
                    filled = 0;
                }
            }
        }
        if !part.is_empty() {
            parts.push(part);
        }
        parts
    }

    fn spans(&self) -> impl Iterator<Item = Range<usize>> {
        let channels = self.channels;
        (0..channels).step_by(SPAN).map(move |c| c..channels.min(c + SPAN))
    }
}

pub(super) fn forward(cpu: &Cpu, saved: &Saved) -> Result<(Tensor, Option<Tensor>)> {
    let rows = ConvRows::new(cpu, saved)?;
    let mut y = cpu.buffer(rows.x.len())?;
    if let Sequences::Even { tokens: 1, .. } = rows.sequences {
        for (sequence, y) in y.chunks_exact_mut(rows.channels).enumerate() {
            convolve(cpu, &rows, saved, &Run { sequence, tokens: 0..1 }, (y, StoreHint::CACHED));
        }
    } else {
        let large = is_large(&y);
        let mut rest = &mut y[..];
        let mut work = Vec::new();
        for run in rows.parts().into_iter().flatten() {
            let (y, after) = std::mem::take(&mut rest).split_at_mut(run.tokens.len() * rows.channels);
            rest = after;
            work.push((run, y));
        }
        cpu.each(work, |(run, y)| {
            if large {
                NonTemporalWriter::with(y, |mut writer| {
                    // SAFETY: `convolve` stores with the hint to `y` alone.
                    let y = unsafe { writer.next(run.tokens.len() * rows.channels) };
                    convolve(cpu, &rows, saved, &run, y);
                });
            } else {
                convolve(cpu, &rows, saved, &run, (y, StoreHint::CACHED));
            }
        });
    }
    let state = if rows.taps == 1 { None } else { Some(final_state(cpu, &rows, saved)?) };
    Ok((cpu.tensor(y, saved.x.shape(), saved.x.dtype())?, state))
}

/// Whether a result is written with non-temporal stores.
fn is_large(result: &[f32]) -> bool {
    size_of_val(result) >= NonTemporalWriter::<f32>::THRESHOLD
}

fn convolve(cpu: &Cpu, rows: &ConvRows<'_>, saved: &Saved, run: &Run, (y, stores): (&mut [f32], StoreHint<'_>)) {
    let mut x: InlineVec<&[f32], 16> = InlineVec::new(rows.taps - 1 + BLOCK, &[]);
    for span in rows.spans() {
        let mut token = run.tokens.start;
        while token < run.tokens.end {
            // what is left of a block goes token by token
            let block = if token + BLOCK <= run.tokens.end { BLOCK } else { 1 };
            let x = &mut x[..rows.taps - 1 + block];
            x.iter_mut().zip(token..).for_each(|(x, t)| *x = rows.delayed(run.sequence, t));
            let from = Window { x, w: &rows.w, span: span.clone(), activation: saved.activation, stores };
            let y = &mut y[(token - run.tokens.start) * rows.channels..][..block * rows.channels];
            kernel::forward(cpu.isa(), &from, rows.taps, y);
            token += block;
        }
    }
}

fn final_state(cpu: &Cpu, rows: &ConvRows<'_>, saved: &Saved) -> Result<Tensor> {
    let (before, channels) = (rows.taps - 1, rows.channels);
    let mut state = cpu.buffer(rows.sequences.len() * before * channels)?;
    for (row, to) in state.chunks_exact_mut(channels).enumerate() {
        let sequence = row / before;
        to.copy_from_slice(rows.delayed(sequence, rows.sequences.rows(sequence).len() + row % before));
    }
    cpu.tensor(state, [rows.sequences.len(), before, channels], saved.x.dtype())
}

pub(super) fn backward(
    cpu: &Cpu,
    saved: &Saved,
    [dy, dfinal]: [Option<&Tensor>; 2],
    need: [bool; 3],
) -> Result<[Option<Tensor>; 3]> {
    let rows = ConvRows::new(cpu, saved)?;
    let dy = match dy {
        Some(dy) => cpu.read(dy)?,
        None => Floats::Widened(cpu.zeros(rows.x.len())?),
    };
    let (taps, channels) = (rows.taps, rows.channels);
    let parts = rows.parts();
    // a gradient that is not needed has no memory
    let mut dx = cpu.buffer(if need[0] { rows.x.len() } else { 0 })?;
    let own_state = saved.state.as_ref().filter(|_| need[2]);
    let mut dstate = cpu.buffer(own_state.map_or(0, Tensor::elements))?;
    let width = if need[1] { room(taps, channels) } else { 0 };
    let mut sums = cpu.zeros(parts.len() * width)?;
    let large = is_large(&dx);
    {
        let (mut dx_rest, mut dstate_rest, mut sums_rest) = (&mut dx[..], &mut dstate[..], &mut sums[..]);
        let mut work = Vec::new();
        for part in parts {
            let (dw, after) = std::mem::take(&mut sums_rest).split_at_mut(width);
            sums_rest = after;
            let tokens: usize = part.iter().map(|run| run.tokens.len()).sum();
            let starts = part.iter().filter(|run| run.tokens.start == 0).count();
            let (dx, after) = std::mem::take(&mut dx_rest).split_at_mut(if need[0] { tokens * channels } else { 0 });
            dx_rest = after;
            let states = if own_state.is_some() { starts * (taps - 1) * channels } else { 0 };
            let (dstate, after) = std::mem::take(&mut dstate_rest).split_at_mut(states);
            dstate_rest = after;
            work.push((part, Sums { dx, dstate, dw }));
        }
        cpu.each(work, |(part, Sums { dx, dstate, dw })| {
            if large {
                let numbers = dx.len();
                NonTemporalWriter::with(dx, |mut writer| {
                    // SAFETY: the kernels below store with the hint to `dx` alone.
                    let (dx, stores) = unsafe { writer.next(numbers) };
                    backward_part(cpu, &rows, saved, &dy, (&part, Sums { dx, dstate, dw }, stores));
                });
            } else {
                backward_part(cpu, &rows, saved, &dy, (&part, Sums { dx, dstate, dw }, StoreHint::CACHED));
            }
        });
    }
    if let Some(dfinal) = dfinal {
        add_final(&rows, &cpu.read(dfinal)?, &mut dx, &mut dstate);
    }
    let dw = match need[1] {
        true => Some(cpu.tensor(total(cpu, &sums, taps, channels)?, saved.w.shape(), saved.dw_dtype)?),
        false => None,
    };
    let dstate = match own_state {
        Some(state) => Some(cpu.tensor(dstate, state.shape(), state.dtype())?),
        None => None,
    };
    let dx = need[0].then(|| cpu.tensor(dx, saved.x.shape(), saved.x.dtype())).transpose()?;
    Ok([dx, dw, dstate])
}

/// Where a part's gradients go.
struct Sums<'a> {
    dx: &'a mut [f32],
    dstate: &'a mut [f32],
    dw: &'a mut [f32],
}

fn backward_part(
    cpu: &Cpu,
    rows: &ConvRows<'_>,
    saved: &Saved,
    dy: &[f32],
    (part, sums, stores): (&[Run], Sums<'_>, StoreHint<'_>),
) {
    let (channels, before) = (rows.channels, rows.taps - 1);
    let mut dz = vec![0.0; room(before, channels)];
    let (mut dx, mut dstate) = (sums.dx.chunks_exact_mut(channels), sums.dstate.chunks_exact_mut(channels));
    for run in part {
        let (first, len, all) = (run.tokens.start, run.tokens.len(), rows.sequences.rows(run.sequence));
        // the inputs before the run: the state's rows, or a neighbour's
        let own_state = first == 0 && saved.state.is_some();
        let mut out: Vec<Option<&mut [f32]>> =
            (0..before).map(|_| if own_state { dstate.next() } else { None }).collect();
        out.extend(dx.by_ref().take(len).map(Some));
        // where the gradient to x is not needed
        out.resize_with(before + len, || None);
        out.resize_with(out.len().next_multiple_of(BLOCK), || None);

        let mut x: Vec<&[f32]> = Vec::with_capacity(rows.taps + BLOCK);
        for span in rows.spans() {
            dz[room(before, span.start)..room(before, span.end)].fill(0.0);
            for (block, dx) in out.chunks_exact_mut(BLOCK).enumerate() {
                let token = first + block * BLOCK;
                x.clear();
                x.extend((token..token + before + BLOCK).map(|t| rows.delayed(run.sequence, t)));
                let dy = std::array::from_fn(|r| match token + r {
                    t if t < all.len() => &dy[(all.start + t) * channels..][..channels],
                    _ => &rows.zeros[..],
                });
                let wanted = token < run.tokens.end && !sums.dw.is_empty();
                let dw = if wanted { Some(&mut sums.dw[..]) } else { None };
                let from = Window { x: &x, w: &rows.w, span: span.clone(), activation: saved.activation, stores };
                kernel::backward(cpu.isa(), &from, rows.taps, Cotangent { dy, before: &mut dz, dw, dx });
            }
        }
    }
}

/// The gradient of the final state goes to the inputs that it repeats.
fn add_final(rows: &ConvRows<'_>, dfinal: &[f32], dx: &mut [f32], dstate: &mut [f32]) {
    let (before, channels) = (rows.taps - 1, rows.channels);
    for (row, from) in dfinal.chunks_exact(channels).enumerate() {
        let (sequence, tokens) = (row / before, rows.sequences.rows(row / before));
        let token = tokens.len() + row % before;
        let to = match token.checked_sub(before) {
            Some(_) if dx.is_empty() => continue,
            Some(token) => &mut dx[(tokens.start + token) * channels..][..channels],
            None if dstate.is_empty() => continue,
            None => &mut dstate[(sequence * before + token) * channels..][..channels],
        };
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    }
}

/// The parts' sums, in order, turned to `[C, K]`.
fn total(cpu: &Cpu, sums: &[f32], taps: usize, channels: usize) -> Result<Buffer<f32>> {
    let mut dw = cpu.buffer(channels * taps)?;
    // a share starts where a line of channels starts
    let grain = room(1, cpu.grain(channels, PARTS * taps));
    let tasks: Vec<(usize, &mut [f32])> = dw.chunks_mut(grain * taps).enumerate().collect();
    cpu.each(tasks, |(share, dw)| {
        let mut sum = vec![0.0f32; room(taps, dw.len() / taps)];
        for part in sums.chunks_exact(room(taps, channels)) {
            sum.iter_mut().zip(&part[share * grain * taps..]).for_each(|(sum, x)| *sum += x);
        }
        for (c, dw) in dw.chunks_exact_mut(taps).enumerate() {
            dw.iter_mut().enumerate().for_each(|(k, dw)| *dw = sum[place(k, taps, c)]);
        }
    });
    Ok(dw)
}
