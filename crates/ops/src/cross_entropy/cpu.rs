//! Chunk by chunk: a product for the logits, one task a row for the softmax and its gradient in place, two products
//! that turn the gradient into those of the inputs.

use super::{CONTRACT, CrossEntropyArgs, Reduction};
use alluvium_core::cpu::simd::math::exp;
use alluvium_core::cpu::{Buffer, Cpu, Isa, MatRef, gemm};
use alluvium_core::{DType, Dims, Error, Result, Shape, Tensor};
use rayon::prelude::*;

/// Words that are summed in f32 before their sum joins an f64 one.
const BLOCK: usize = 4_096;

/// The gradients for a loss whose own is 1.
pub(super) struct CpuGradients {
    cpu: Cpu,
    dtype: DType,
    dx: Option<(Buffer<f32>, Shape)>,
    dw: Option<(Buffer<f32>, Shape)>,
}

impl CpuGradients {
    /// The gradients for a loss whose own is `by`.
    pub(super) fn times(self, by: f32) -> Result<[Option<Tensor>; 2]> {
        let CpuGradients { cpu, dtype, dx, dw } = self;
        let finish = |grad: Option<(Buffer<f32>, Shape)>| match grad {
            Some((grad, shape)) => scaled(&cpu, grad, shape, by, dtype).map(Some),
            None => Ok(None),
        };
        Ok([finish(dx)?, finish(dw)?])
    }
}

pub(super) fn forward(cpu: &Cpu, args: &CrossEntropyArgs<'_>, dims: &Dims) -> Result<(Tensor, CpuGradients)> {
    let CrossEntropyArgs { x, w, z_loss, .. } = *args;
    let (tokens, width, words, isa) = (dims['N'], dims['D'], dims['V'], cpu.isa());
    let targets = args.targets.slice::<u32>()?;
    let counted = counted(targets, args.ignore_index, words)?;
    let weight = match args.reduction {
        Reduction::Mean => 1.0 / counted.len().max(1) as f64,
        Reduction::Sum => 1.0,
    };
    let (xs, ws) = (cpu.read(x)?, cpu.read(w)?);
    let mut dx = x.is_traced().then(|| cpu.zeros::<f32>(tokens * width)).transpose()?;
    let mut dw = w.is_traced().then(|| cpu.zeros::<f32>(words * width)).transpose()?;
    let wanted = dx.is_some() || dw.is_some();
    let most = args.chunk.min(counted.len());
    let (mut rows, mut logits) = (cpu.buffer::<f32>(most * width)?, cpu.buffer::<f32>(most * words)?);
    let mut losses = vec![0.0f64; most];
    let mut total = 0.0;
    let w_mat = MatRef::new(&ws, words, width)?;
    for chunk in counted.chunks(args.chunk) {
        let n = chunk.len();
        let (rows, logits, losses) = (&mut rows[..n * width], &mut logits[..n * words], &mut losses[..n]);
        for (row, &token) in rows.chunks_exact_mut(width).zip(chunk) {
            row.copy_from_slice(&xs[token * width..][..width]);
        }
        gemm(cpu, 1.0, MatRef::new(rows, n, width)?, w_mat.t(), 0.0, logits)?;
        cpu.run(|| {
            logits.par_chunks_exact_mut(words).zip(losses.par_iter_mut()).zip(chunk).for_each(|((z, loss), &token)| {
                let token = TokenLoss { target: targets[token] as usize, z_loss: f64::from(z_loss), weight };
                *loss = if wanted { token.loss_and_gradient(isa, z) } else { token.loss(isa, z).0 };
            });
        });
        total += losses.iter().sum::<f64>();
        let dz = MatRef::new(logits, n, words)?;
        if let Some(dw) = &mut dw {
            gemm(cpu, 1.0, dz.t(), MatRef::new(rows, n, width)?, 1.0, dw)?;
        }
        if let Some(dx) = &mut dx {
            // the rows have been used: their memory takes the gradient
            gemm(cpu, 1.0, dz, w_mat, 0.0, rows)?;
            for (row, &token) in rows.chunks_exact(width).zip(chunk) {
                dx[token * width..][..width].copy_from_slice(row);
            }
        }
    }
    let loss = Tensor::full([], (total * weight) as f32, x.device())?;
    let grad = CpuGradients {
        cpu: cpu.clone(),
        dtype: x.dtype(),
        dx: dx.map(|dx| (dx, x.shape())),
        dw: dw.map(|dw| (dw, w.shape())),
    };
    Ok((loss, grad))
}

/// The tokens whose target counts.
fn counted(targets: &[u32], ignore_index: Option<u32>, words: usize) -> Result<Vec<usize>> {
    let counted: Vec<usize> = (0..targets.len()).filter(|&i| Some(targets[i]) != ignore_index).collect();
    match counted.iter().find(|&&i| targets[i] as usize >= words) {
        Some(&i) => {
            let why = format!("the target of token {i} is {}, expected below V = {words}", targets[i]);
            Err(Error::value(CONTRACT.op, why))
        }
        None => Ok(counted),
    }
}

/// A gradient times that of the loss, in the dtype of its input.
fn scaled(cpu: &Cpu, mut grad: Buffer<f32>, shape: Shape, by: f32, dtype: DType) -> Result<Tensor> {
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
