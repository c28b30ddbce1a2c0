//! Elementwise steps between the products of a chunk. Square matrices have rows of [`CHUNK`] values.

use super::CHUNK;
use alluvium_core::cpu::simd::{F32s, math};

/// A log decay as a multiple of 1/64 and a remainder. Below −256 it is −256: `e^−256` is 0 in f32, and a sum of −∞ and
/// its remainder would be NaN.
fn split_step(step: f32) -> [f32; 2] {
    let step = if step < -256.0 { -256.0 } else { step };
    let coarse = (step * 64.0).round() / 64.0;
    [coarse, step - coarse]
}

/// `e^{coarse + fine}`, with what the sum of both rounds away. `fine` is the smaller of both, or `coarse` is 0.
#[inline(always)]
fn exp_of_sum<S: F32s>(coarse: S, fine: S) -> S {
    let sum = coarse + fine;
    let lost = (coarse - sum) + fine;
    let y = math::exp(sum);
    y.mul_add(lost, y)
}

alluvium_core::simd! {
    /// `gamma[i][j] = e^{g_{j+1} + … + g_i}` for j ≤ i and 0 above; `from_start[i] = e^{g_0 + … + g_i}`.
    ///
    /// Each exponent is summed on its own: a difference of two running sums would lose what strong decay leaves. The
    /// relative error of an exponential is the absolute error of its exponent, so a log decay is split into a multiple
    /// of 1/64, whose sums are exact, and a remainder of at most 1/128, whose sums stay small.
    pub(crate) fn decays<S>(g: &[f32], gamma: &mut [f32], from_start: &mut [f32]) {
        let (mut coarse, mut fine) = ([0.0f32; CHUNK], [0.0f32; CHUNK]);
        let (mut sum, mut rests) = ([0.0f32; 2], [0.0f32; CHUNK]);
        for (i, &step) in g.iter().enumerate() {
            let step = split_step(step);
            let row = &mut gamma[i * CHUNK..(i + 1) * CHUNK];
            for j in (0..CHUNK).step_by(S::LANES) {
                if j < i {
                    (S::load(&coarse[j..]) + S::splat(step[0])).store(&mut coarse[j..]);
                    (S::load(&fine[j..]) + S::splat(step[1])).store(&mut fine[j..]);
                }
                if j <= i {
                    if i < j + S::LANES {
                        coarse[i..j + S::LANES].fill(0.0);
                        fine[i..j + S::LANES].fill(0.0);
                    }
                    exp_of_sum(S::load(&coarse[j..]), S::load(&fine[j..])).store(&mut row[j..]);
                }
            }
            row[i] = 1.0;
            row[i + 1..].fill(0.0);
            sum = [sum[0] + step[0], sum[1] + step[1]];
            (from_start[i], rests[i]) = (sum[0], sum[1]);
        }
        for (sums, rests) in from_start[..g.len()].chunks_mut(S::LANES).zip(rests.chunks(S::LANES)) {
            exp_of_sum(S::load_partial(sums), S::load(rests)).store_partial(sums);
        }
    }

    /// As [`decays`], from the running sums of the exponents.
    pub(crate) fn decays_of_sums<S>(sums: &[f32], gamma: &mut [f32], from_start: &mut [f32]) {
        for (i, &sum) in sums.iter().enumerate() {
            let row = &mut gamma[i * CHUNK..(i + 1) * CHUNK];
            row[i + 1..].fill(0.0);
            for j in (0..=i).step_by(S::LANES) {
                let end = (j + S::LANES).min(i + 1);
                math::exp(S::splat(sum) - S::load_partial(&sums[j..end])).store_partial(&mut row[j..end]);
            }
        }
        for (sums, out) in sums.chunks(S::LANES).zip(from_start[..sums.len()].chunks_mut(S::LANES)) {
            math::exp(S::load_partial(sums)).store_partial(out);
        }
    }

    /// `a = (I + L)⁻¹` with `L_ij = beta_i · kk_ij` below the diagonal, row by row.
    pub(crate) fn invert<S>(kk: &[f32], beta: &[f32], a: &mut [f32]) {
        for (i, &beta) in beta.iter().enumerate() {
            let (above, row) = a.split_at_mut(i * CHUNK);
            let row = &mut row[..CHUNK];
            row.fill(0.0);
            for j in (0..i).step_by(S::LANES) {
                let mut sums = [S::splat(0.0); 4];
                for (m, above) in above.chunks_exact(CHUNK).enumerate().skip(j) {
                    sums[m % 4] = S::splat(kk[i * CHUNK + m]).mul_add(S::load(&above[j..]), sums[m % 4]);
                }
                (((sums[0] + sums[1]) + (sums[2] + sums[3])) * S::splat(-beta)).store(&mut row[j..]);
            }
            row[i] = 1.0;
        }
    }

    /// `out[i][j] = scale · gamma[i][j] · x[i][j] · columns[j]` for j ≤ i, 0 above, where `x` need not be finite.
    pub(crate) fn gate<S>(scale: f32, gamma: &[f32], columns: &[f32], x: &[f32], out: &mut [f32]) {
        for i in 0..columns.len() {
            let span = i * CHUNK..i * CHUNK + i + 1;
            let (gamma, x, out) = (&gamma[span.clone()], &x[span], &mut out[i * CHUNK..(i + 1) * CHUNK]);
            out[i + 1..].fill(0.0);
            for j in (0..=i).step_by(S::LANES) {
                let span = j..(j + S::LANES).min(i + 1);
                let (gamma, columns) = (S::load_partial(&gamma[span.clone()]), S::load_partial(&columns[span.clone()]));
                let factor = gamma * columns * S::splat(scale);
                (S::load_partial(&x[span.clone()]) * factor).store_partial(&mut out[span]);
            }
        }
    }

    /// `rows[i] *= scale · factors[i]`.
    pub(crate) fn scale_rows<S>(scale: f32, factors: &[f32], rows: &mut [f32]) {
        let width = rows.len() / factors.len();
        for (row, &factor) in rows.chunks_exact_mut(width).zip(factors) {
            let factor = S::splat(scale * factor);
            for x in row.chunks_mut(S::LANES) {
                (S::load_partial(x) * factor).store_partial(x);
            }
        }
    }

    /// `out[i] = v[i] − factors[i] · u[i]`, row by row.
    pub(crate) fn residual<S>(v: &[f32], factors: &[f32], u: &[f32], out: &mut [f32]) {
        let width = v.len() / factors.len();
        for (i, &factor) in factors.iter().enumerate() {
            let factor = S::splat(-factor);
            for j in (i * width..(i + 1) * width).step_by(S::LANES) {
                let span = j..(j + S::LANES).min((i + 1) * width);
                let (u, v) = (S::load_partial(&u[span.clone()]), S::load_partial(&v[span.clone()]));
                u.mul_add(factor, v).store_partial(&mut out[span]);
            }
        }
    }

    /// `out[i] += a[i] · b[i]`, the dot products of rows.
    pub(crate) fn dots<S>(a: &[f32], b: &[f32], out: &mut [f32]) {
        let width = a.len() / out.len();
        for ((a, b), out) in a.chunks_exact(width).zip(b.chunks_exact(width)).zip(out) {
            let mut sums = [S::splat(0.0); 2];
            for (i, (a, b)) in a.chunks(S::LANES).zip(b.chunks(S::LANES)).enumerate() {
                sums[i % 2] = S::load_partial(a).mul_add(S::load_partial(b), sums[i % 2]);
            }
            *out += (sums[0] + sums[1]).sum();
        }
    }

    /// `out[i][j] += a[i][j] · b[i][j] · columns[j]` for j < i.
    pub(crate) fn add_below<S>(a: &[f32], b: &[f32], columns: &[f32], out: &mut [f32]) {
        for i in 0..columns.len() {
            for j in (0..i).step_by(S::LANES) {
                let (row, end) = (i * CHUNK, (j + S::LANES).min(i));
                let (a, b) = (S::load_partial(&a[row + j..row + end]), S::load_partial(&b[row + j..row + end]));
                let out = &mut out[row + j..row + end];
                (a * b).mul_add(S::load_partial(&columns[j..end]), S::load_partial(out)).store_partial(out);
            }
        }
    }

    /// The gradient of each step of the log decay from those of the exponents that the step is in:
    /// `out[t] = Σ_{i ≥ t} (rows[i] + Σ_{j < t} e[i][j]) + Σ_{j < t} columns[j] + whole`.
    ///
    /// Every term has `e^{g_t}` as a factor. A difference of running sums would add terms without it and take them away
    /// again, and leave their rounding, which is larger than the gradient where the decay is strong.
    pub(crate) fn step_gradients<S>(e: &[f32], rows: &[f32], columns: &[f32], whole: f32, out: &mut [f32]) {
        let (mut below, mut after, mut before) = ([0.0f32; CHUNK], 0.0, 0.0);
        for t in (0..out.len()).rev() {
            let mut sum = S::splat(0.0);
            for j in (0..t).step_by(S::LANES) {
                let end = (j + S::LANES).min(t);
                let x = S::load_partial(&below[j..end]) + S::load_partial(&e[t * CHUNK + j..t * CHUNK + end]);
                x.store_partial(&mut below[j..end]);
                sum += x;
            }
            after += rows[t];
            out[t] = after + sum.sum() + whole;
        }
        for (out, column) in out.iter_mut().zip(columns) {
            *out += before;
            before += column;
        }
    }

    /// Whether a row of `after` is nowhere larger than `least · factors` of that row's largest element of `before`.
    pub(crate) fn any_row_is_less<S>(before: &[f32], after: &[f32], factors: &[f32], least: f32) -> bool {
        let width = before.len() / factors.len();
        for (i, factor) in factors.iter().enumerate() {
            let mut largest = [S::splat(0.0); 2];
            for (largest, x) in largest.iter_mut().zip([before, after]) {
                for x in x[i * width..(i + 1) * width].chunks(S::LANES) {
                    let x = if x.len() == S::LANES { S::load(x) } else { S::load_partial(x) };
                    *largest = largest.max(x).max(-x);
                }
            }
            if largest[1].max_lane() < least * factor * largest[0].max_lane() {
                return true;
            }
        }
        false
    }

    /// `rows[i] += Σ_j x[i][j]` and `columns[j] += Σ_i x[i][j]`, both for j ≤ i.
    pub(crate) fn sums_below<S>(x: &[f32], rows: &mut [f32], columns: &mut [f32]) {
        for (i, row) in rows.iter_mut().enumerate() {
            let mut sum = S::splat(0.0);
            for j in (0..=i).step_by(S::LANES) {
                let end = (j + S::LANES).min(i + 1);
                let x = S::load_partial(&x[i * CHUNK + j..i * CHUNK + end]);
                sum += x;
                (S::load_partial(&columns[j..end]) + x).store_partial(&mut columns[j..end]);
            }
            *row += sum.sum();
        }
    }
}
