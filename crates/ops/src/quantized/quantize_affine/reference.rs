//! The definition, in plain loops. The codes are those of f32 arithmetic, so every step is rounded to f32.

use crate::op::Array;

fn rounded(x: f64) -> f64 {
    f64::from(x as f32)
}

/// The codes packed into words, the scales and the biases.
pub(super) fn forward(w: &Array, bits: usize, group: usize) -> Vec<Array> {
    let (mut words, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for row in w.rows() {
        let mut stream = vec![0u32; row.len() * bits / 32];
        for (g, w) in row.chunks(group).enumerate() {
            let (scale, bias) = line(w, bits);
            for (i, w) in w.iter().enumerate() {
                let code = rounded(rounded(w - bias) / scale).round_ties_even().clamp(0.0, top(bits));
                let code = if code.is_nan() { 0 } else { code as usize };
                for bit in (0..bits).filter(|bit| code >> bit & 1 == 1) {
                    let at = (g * group + i) * bits + bit;
                    stream[at / 32] |= 1 << (at % 32);
                }
            }
            scales.push(scale);
            biases.push(bias);
        }
        words.extend(stream.into_iter().map(f64::from));
    }
    let like = |width: usize| [&w.shape[..w.shape.len() - 1], &[width]].concat();
    let (words_of_row, groups) = (w.width() * bits / 32, w.width() / group);
    vec![Array::new(like(words_of_row), words), Array::new(like(groups), scales), Array::new(like(groups), biases)]
}

/// The largest code.
fn top(bits: usize) -> f64 {
    f64::from((1u32 << bits) - 1)
}

/// Scale and bias of a group.
fn line(w: &[f64], bits: usize) -> (f64, f64) {
    let least = w.iter().copied().fold(f64::INFINITY, f64::min);
    let most = w.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let size = rounded(rounded(most - least) / top(bits)).max(rounded(1e-7));
    if bits == 1 {
        return (size, least);
    }
    let (scale, edge) = if least.abs() > most.abs() { (size, least) } else { (-size, most) };
    let code = rounded(edge / scale).round_ties_even();
    if code == 0.0 { (scale, 0.0) } else { (rounded(edge / code), edge) }
}
