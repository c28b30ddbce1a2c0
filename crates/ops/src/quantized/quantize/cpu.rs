//! Threads over rows.

use crate::quantized::cpu::{Stream, power, small};
use crate::quantized::{Packed, Packing};
use alluvium_core::cpu::Cpu;
use alluvium_core::{Result, Tensor};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, w: &Tensor, packing: Packing) -> Result<Packed> {
    let (bits, group, inner) = (packing.bits(), packing.group(), w.shape().last());
    let (ws, rows) = (cpu.read(w)?, w.elements() / inner);
    let (words, groups, axis) = (inner * bits / 32, inner / group, w.shape().rank() - 1);
    let (mut codes, mut scales) = (cpu.buffer::<u32>(rows * words)?, cpu.buffer::<u8>(rows * groups)?);
    let grain = cpu.grain(rows, 8 * inner);
    cpu.run(|| {
        let to = codes.par_chunks_mut(words).zip(scales.par_chunks_mut(groups));
        ws.par_chunks(inner).zip(to).with_min_len(grain).for_each(|(w, (codes, scales))| {
            let mut stream = Stream::new(codes);
            for (w, stored) in w.chunks_exact(group).zip(scales) {
                let most = w.iter().fold(0.0f32, |most, w| most.max(w.abs()));
                let scale;
                (*stored, scale) = scale_of(most, packing);
                for w in w {
                    let w = if scale == 0.0 { 0.0 } else { w / scale };
                    stream.push(if bits == 4 { e2m1(w) } else { e4m3(w) }, bits as u32);
                }
            }
        });
    });
    Ok(Packed {
        w: cpu.wrap(codes, w.shape().with(axis, words))?,
        scales: cpu.wrap(scales, w.shape().with(axis, groups))?,
        biases: None,
        packing,
    })
}

/// The scale of a group whose largest size is `most`: as it is stored, and the number.
fn scale_of(most: f32, packing: Packing) -> (u8, f32) {
    let least = most / if packing == Packing::Mxfp8 { 448.0 } else { 6.0 };
    if packing == Packing::Nvfp4 {
        let code = e4m3(least) as u8;
        return (code, small(code));
    }
    if most == 0.0 {
        return (127, 1.0);
    }
    // up to the next power of two, unless it is one; what is below the least power becomes that
    let bits = least.to_bits();
    let code = ((bits >> 23) + u32::from(bits & 0x007f_ffff != 0)).min(254) as u8;
    (code, power(code))
}

/// The e2m1 float nearest to a number; of two the smaller.
fn e2m1(x: f32) -> u32 {
    let code = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0].iter().filter(|&&middle| x.abs() > middle).count() as u32;
    if x < 0.0 && code > 0 { code | 8 } else { code }
}

/// The e4m3 float nearest to a number, ties to even; at most 448.
fn e4m3(x: f32) -> u32 {
    let size = x.abs();
    let code = if size < 1.0 / 64.0 {
        (size * 512.0).round_ties_even() as u32
    } else {
        // half of the last bit that stays, less one where that bit is even, carries into it
        let bits = size.to_bits();
        ((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) - (120 << 3)
    };
    code.min(0x7e) | (x.to_bits() >> 31) << 7
}
