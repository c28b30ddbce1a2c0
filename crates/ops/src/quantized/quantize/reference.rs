//! The definition, in plain loops. The codes are those of f32 arithmetic, so quotients are rounded to f32.

use crate::op::Array;
use crate::quantized::Packing;

fn rounded(x: f64) -> f64 {
    f64::from(x as f32)
}

/// The sizes of all codes without a sign, rising: `exponent` bits, `mantissa` bits, and the exponent's bias.
fn sizes(exponent: u32, mantissa: u32, bias: i32) -> Vec<f64> {
    let number = |code: u32| {
        let fraction = f64::from(code % (1 << mantissa)) / f64::from(1 << mantissa);
        match code >> mantissa {
            0 => fraction * 2f64.powi(1 - bias),
            e => (1.0 + fraction) * 2f64.powi(e as i32 - bias),
        }
    };
    (0..1 << (exponent + mantissa)).map(number).collect()
}

/// The code nearest to a size; of two that are as near, the even one or the smaller.
fn nearest(sizes: &[f64], x: f64, even: bool) -> usize {
    let mut best = 0;
    for (code, size) in sizes.iter().enumerate() {
        let (gap, least) = ((size - x).abs(), (sizes[best] - x).abs());
        if gap < least || (gap == least && even && code % 2 == 0) {
            best = code;
        }
    }
    best
}

/// The codes packed into words, and the scales as they are stored.
pub(super) fn forward(w: &Array, packing: Packing) -> Vec<Array> {
    let (fours, mut eights) = (sizes(2, 1, 1), sizes(4, 3, 7));
    // the last one is NaN
    eights.pop();
    let (bits, group, top) = match packing {
        Packing::Mxfp8 => (8, 32, 448.0),
        _ => (4, packing.group(), 6.0),
    };
    let (mut words, mut scales) = (Vec::new(), Vec::new());
    for row in w.rows() {
        let mut stream = vec![0u32; row.len() * bits / 32];
        for (g, w) in row.chunks(group).enumerate() {
            let most = w.iter().fold(0.0f64, |most, w| most.max(w.abs()));
            let least = rounded(most / top);
            let (stored, scale) = match packing {
                Packing::Nvfp4 => {
                    let code = nearest(&eights, least, true);
                    (code as f64, eights[code])
                }
                _ if most == 0.0 => (127.0, 1.0),
                _ => {
                    let power = least.log2().ceil().max(-127.0);
                    (power + 127.0, 2f64.powf(power))
                }
            };
            scales.push(stored);
            for (i, &w) in w.iter().enumerate() {
                let x = if scale == 0.0 { 0.0 } else { rounded(w / scale) };
                let sign = usize::from(x.is_sign_negative());
                let code = match (bits, nearest(if bits == 4 { &fours } else { &eights }, x.abs(), bits == 8)) {
                    (4, 0) => 0,
                    (4, code) => code | sign << 3,
                    (_, code) => code | sign << 7,
                };
                let at = (g * group + i) * bits;
                stream[at / 32] |= (code as u32) << (at % 32);
            }
        }
        words.extend(stream.into_iter().map(f64::from));
    }
    let like = |width: usize| [&w.shape[..w.shape.len() - 1], &[width]].concat();
    vec![Array::new(like(w.width() * bits / 32), words), Array::new(like(w.width() / group), scales)]
}
