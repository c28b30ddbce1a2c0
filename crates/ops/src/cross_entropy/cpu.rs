//! Chunk by chunk: a product for the logits, one task a row for the softmax and its gradient in place, two products
//! that turn the gradient into those of the inputs.

use super::{CONTRACT, CrossEntropyArgs, LossOptions, Reduction};
use crate::common::stored::by_storage;
use crate::linalg::weights::{Dense, Weights, many, multiply_back};
use crate::quantized::PackedLayout;
use crate::quantized::cpu::Codes;
use crate::quantized::quantized_cross_entropy::{self, QuantizedCrossEntropyArgs};
use alluvium_core::cpu::simd::math::exp;
use alluvium_core::cpu::{Buffer, Cpu, Isa, MatRef, gemm};
use alluvium_core::{DType, Dims, Error, Result, Shape, Tensor};
use rayon::prelude::*;

/// Words that are summed in f32 before their sum joins an f64 one.
const BLOCK: usize = 4_096;

/// The gradients for a loss whose own is 1.
pub(crate) struct CpuGradients {
    cpu: Cpu,
    dx: Option<InputGradient>,
    dw: Option<InputGradient>,
}

/// The gradient of an input of this shape, and the dtype in which it is returned.
struct InputGradient {
    grad: Buffer<f32>,
    shape: Shape,
    dtype: DType,
}

impl CpuGradients {
    /// The gradients for a loss whose own is `by`.
    pub(super) fn times(self, by: f32) -> Result<[Option<Tensor>; 2]> {
        let CpuGradients { cpu, dx, dw } = self;
        let finish = |grad: Option<InputGradient>| grad.map(|grad| scaled(&cpu, grad, by)).transpose();
        Ok([finish(dx)?, finish(dw)?])
    }
}

pub(super) fn forward(cpu: &Cpu, args: &CrossEntropyArgs<'_>, dims: &Dims) -> Result<(Tensor, CpuGradients)> {
    let CrossEntropyArgs { x, w, .. } = *args;
    let inner = dims['D'];
    let mut dw = w.is_traced().then(|| cpu.zeros::<f32>(w.elements())).transpose()?;
    let loss = Loss { op: CONTRACT.op, x, targets: args.targets.slice::<u32>()?, options: args.options() };
    let (loss, dx) = by_storage!(w.dtype(), T => {
        loss.chunk_by_chunk(cpu, &Dense::<T> { data: w.slice()?, inner }, dims['V'], dw.as_deref_mut())?
    });
    Ok((loss, CpuGradients { cpu: cpu.clone(), dx: dx.map(|dx| like(dx, x)), dw: dw.map(|dw| like(dw, w)) }))
}

/// As [`forward`] for a quantized projection, which gets no gradient.
pub(crate) fn forward_packed(
    cpu: &Cpu,
    args: &QuantizedCrossEntropyArgs<'_>,
    layout: PackedLayout,
) -> Result<(Tensor, CpuGradients)> {
    let QuantizedCrossEntropyArgs { x, q, .. } = args;
    let options = args.options();
    let loss = Loss { op: quantized_cross_entropy::CONTRACT.op, x, targets: args.targets.slice::<u32>()?, options };
    let (loss, dx) = loss.chunk_by_chunk(cpu, &Codes::new(q, layout)?, q.w.shape()[0], None)?;
    Ok((loss, CpuGradients { cpu: cpu.clone(), dx: dx.map(|dx| like(dx, x)), dw: None }))
}

/// A gradient with the shape of its input.
fn like(grad: Buffer<f32>, of: &Tensor) -> InputGradient {
    InputGradient { grad, shape: of.shape(), dtype: of.gradient_dtype() }
}

/// The inputs of a loss besides the projection.
struct Loss<'a> {
    op: &'static str,
    x: &'a Tensor,
    targets: &'a [u32],
    options: LossOptions,
}

impl Loss<'_> {
    /// The loss and, where `x` is traced, its gradient. Adds that of the projection to `dw`.
    fn chunk_by_chunk<W: Weights>(
        &self,
        cpu: &Cpu,
        weights: &W,
        words: usize,
        mut dw: Option<&mut [f32]>,
    ) -> Result<(Tensor, Option<Buffer<f32>>)> {
        let LossOptions { ignore_index, reduction, z_loss, chunk } = self.options;
        let (targets, width, isa) = (self.targets, weights.inner(), cpu.isa());
        let counted = counted(self.op, targets, ignore_index, words)?;
        let weight = match reduction {
            Reduction::Mean => 1.0 / counted.len().max(1) as f64,
            Reduction::Sum => 1.0,
        };
        let xs = cpu.read(self.x)?;
        let mut dx = self.x.is_traced().then(|| cpu.zeros::<f32>(xs.len())).transpose()?;
        let wanted = dx.is_some() || dw.is_some();
        let most = chunk.min(counted.len());
        let (mut rows, mut logits) = (cpu.buffer::<f32>(most * width)?, cpu.buffer::<f32>(most * words)?);
        let mut losses = vec![0.0f64; most];
        let mut total = 0.0;
        for chunk in counted.chunks(chunk) {
            let n = chunk.len();
            let (rows, logits, losses) = (&mut rows[..n * width], &mut logits[..n * words], &mut losses[..n]);
            for (row, &token) in rows.chunks_exact_mut(width).zip(chunk) {
                row.copy_from_slice(&xs[token * width..][..width]);
            }
            many(cpu, weights, 0..words, rows, logits)?;
            cpu.run(|| {
                let each = logits.par_chunks_exact_mut(words).zip(losses.par_iter_mut()).zip(chunk);
                each.for_each(|((z, loss), &token)| {
                    let token = TokenLoss { target: targets[token] as usize, z_loss: f64::from(z_loss), weight };
                    *loss = if wanted { token.loss_and_gradient(isa, z) } else { token.loss(isa, z).0 };
                });
            });
            total += losses.iter().sum::<f64>();
            if let Some(dw) = &mut dw {
                let dz = MatRef::new(logits, n, words)?;
                gemm(cpu, 1.0, dz.t(), MatRef::new(rows, n, width)?, 1.0, dw)?;
            }
            if let Some(dx) = &mut dx {
                // the rows have been used: their memory takes the gradient
                multiply_back(cpu, weights, 0..words, logits, rows)?;
                for (row, &token) in rows.chunks_exact(width).zip(chunk) {
                    dx[token * width..][..width].copy_from_slice(row);
                }
            }
        }
        Ok((Tensor::full([], (total * weight) as f32, self.x.device())?, dx))
    }
}

/// The tokens whose target counts.
fn counted(op: &'static str, targets: &[u32], ignore_index: Option<u32>, words: usize) -> Result<Vec<usize>> {
    let counted: Vec<usize> = (0..targets.len()).filter(|&i| Some(targets[i]) != ignore_index).collect();
    match counted.iter().find(|&&i| targets[i] as usize >= words) {
        Some(&i) => {
            let why = format!("the target of token {i} is {}, expected below V = {words}", targets[i]);
            Err(Error::value(op, why))
        }
        None => Ok(counted),
    }
}

/// A gradient times that of the loss, rounded to its dtype.
fn scaled(cpu: &Cpu, gradient: InputGradient, by: f32) -> Result<Tensor> {
    let InputGradient { mut grad, shape, dtype } = gradient;
    if by != 1.0 {
        let grain = cpu.grain(grad.len(), 1);
        cpu.run(|| grad.par_chunks_mut(grain).for_each(|grad| grad.iter_mut().for_each(|x| *x *= by)));
    }
    cpu.tensor(grad, shape, dtype)
}

/// The target and weights of one token.
struct TokenLoss {
    target: usize,
    z_loss: f64,
    weight: f64,
}

/// The softmax of one token: its terms relative to the largest logit.
struct Softmax {
    max: f32,
    /// `exp(target's logit − max)`.
    own: f64,
    /// `Σ exp(z − max)` over the other words. With the target among them, `1 − p` of a likely target would cancel.
    others: f64,
}

impl Softmax {
    fn sum(&self) -> f64 {
        self.own + self.others
    }

    fn lse(&self) -> f64 {
        f64::from(self.max) + self.sum().ln()
    }
}

impl TokenLoss {
    /// The loss and the softmax; the logits stay.
    fn loss(&self, isa: Isa, z: &mut [f32]) -> (f64, Softmax) {
        let (max, own) = (largest(isa, z), z[self.target]);
        z[self.target] = f32::NEG_INFINITY;
        let others = z.chunks(BLOCK).map(|z| f64::from(sum_of_exp(isa, z, max))).sum();
        z[self.target] = own;
        let below = f64::from(max) - f64::from(own);
        let softmax = Softmax { max, own: (-below).exp(), others };
        let loss = if below == 0.0 { others.ln_1p() } else { below + softmax.sum().ln() };
        let lse = softmax.lse();
        (loss + self.z_loss * lse * lse, softmax)
    }

    /// The loss; the logits become the gradient.
    fn loss_and_gradient(&self, isa: Isa, z: &mut [f32]) -> f64 {
        let (loss, softmax) = self.loss(isa, z);
        let (of_lse, sum) = (2.0 * self.z_loss * softmax.lse(), softmax.sum());
        scaled_exp(isa, z, softmax.max, (self.weight * (1.0 + of_lse) / sum) as f32);
        // p − 1, as what the other words have of the sum
        z[self.target] = (self.weight * (of_lse * softmax.own - softmax.others) / sum) as f32;
        loss
    }
}

alluvium_core::simd! {
    fn largest<S>(z: &[f32]) -> f32 {
        let whole = z.len() - z.len() % S::LANES;
        let mut max = S::splat(z[0]);
        for z in z[..whole].chunks_exact(S::LANES) {
            max = S::load(z).max(max);
        }
        z[whole..].iter().copied().fold(max.max_lane(), f32::max)
    }

    fn sum_of_exp<S>(z: &[f32], max: f32) -> f32 {
        let whole = z.len() - z.len() % (4 * S::LANES);
        let shift = S::splat(max);
        let mut sums = [S::splat(0.0); 4];
        for z in z[..whole].chunks_exact(4 * S::LANES) {
            for (z, sum) in z.chunks_exact(S::LANES).zip(&mut sums) {
                *sum += exp(S::load(z) - shift);
            }
        }
        let mut sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])).sum();
        for &z in &z[whole..] {
            // lane by lane: a register's lanes past the end would add exp(−max) each
            let mut one = [0.0];
            exp(S::splat(z) - shift).store_partial(&mut one);
            sum += one[0];
        }
        sum
    }

    fn scaled_exp<S>(z: &mut [f32], max: f32, scale: f32) {
        let (shift, scale) = (S::splat(max), S::splat(scale));
        for z in z.chunks_mut(S::LANES) {
            (exp(S::load_partial(z) - shift) * scale).store_partial(z);
        }
    }
}
