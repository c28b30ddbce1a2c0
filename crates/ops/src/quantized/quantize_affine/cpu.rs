//! Threads over rows.

use crate::quantized::cpu::Stream;
use crate::quantized::{Packed, Packing};
use alluvium_core::cpu::Cpu;
use alluvium_core::{Result, Tensor};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, w: &Tensor, packing: Packing) -> Result<Packed> {
    let (bits, group, inner) = (packing.bits(), packing.group(), w.shape().last());
    let (ws, rows) = (cpu.read(w)?, w.elements() / inner);
    let (words, groups, axis) = (inner * bits / 32, inner / group, w.shape().rank() - 1);
    let mut codes = cpu.buffer::<u32>(rows * words)?;
    let (mut scales, mut biases) = (cpu.buffer(rows * groups)?, cpu.buffer(rows * groups)?);
    let grain = cpu.grain(rows, 4 * inner);
    cpu.run(|| {
        let to = codes.par_chunks_mut(words).zip(scales.par_chunks_mut(groups).zip(biases.par_chunks_mut(groups)));
        ws.par_chunks(inner).zip(to).with_min_len(grain).for_each(|(w, (codes, (scales, biases)))| {
            let mut stream = Stream::new(codes);
            let mut whole = [0.0; 128];
            for (w, (scale, bias)) in w.chunks_exact(group).zip(scales.iter_mut().zip(biases)) {
                let whole = &mut whole[..group];
                (*scale, *bias) = quantize(cpu.isa(), bits as u32, w, whole);
                whole.iter().for_each(|&code| stream.push(code as u32, bits as u32));
            }
        });
    });
    Ok(Packed {
        w: cpu.wrap(codes, w.shape().with(axis, words))?,
        scales: cpu.tensor(scales, w.shape().with(axis, groups), w.dtype())?,
        biases: Some(cpu.tensor(biases, w.shape().with(axis, groups), w.dtype())?),
        packing,
    })
}

/// Where a group's codes start, and how far apart they are: the definition is in the reference.
fn line(bits: u32, least: f32, most: f32) -> (f32, f32) {
    let (top, below) = (((1u32 << bits) - 1) as f32, least.abs() > most.abs());
    let size = ((most - least) / top).max(1e-7);
    if bits == 1 {
        return (size, least);
    }
    let (scale, edge) = if below { (size, least) } else { (-size, most) };
    match (edge / scale).round_ties_even() {
        0.0 => (scale, 0.0),
        code => (edge / code, edge),
    }
}

alluvium_core::simd! {
    /// The codes of one group as f32, its scale and its bias.
    fn quantize<S>(bits: u32, w: &[f32], codes: &mut [f32]) -> (f32, f32) {
        let (mut least, mut most) = (S::splat(f32::NEG_INFINITY), S::splat(f32::NEG_INFINITY));
        for w in w.chunks_exact(S::LANES) {
            let w = S::load(w);
            (least, most) = ((-w).max(least), w.max(most));
        }
        let mut least = -least.max_lane();
        if least == 0.0 {
            // of zeros of both signs the first is the least
            least = w.iter().copied().find(|&w| w == 0.0).unwrap_or(least);
        }
        let (scale, bias) = line(bits, least, most.max_lane());
        let (zero, top) = (S::splat(0.0), S::splat(((1u32 << bits) - 1) as f32));
        for (w, codes) in w.chunks_exact(S::LANES).zip(codes.chunks_exact_mut(S::LANES)) {
            let code = (S::load(w) - S::splat(bias)) / S::splat(scale);
            code.round().max(zero).min(top).store(codes);
        }
        (scale, bias)
    }
}
