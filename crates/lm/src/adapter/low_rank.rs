//! A frozen matrix with a trained low-rank update.

use super::dropout::{Dropout, DropoutSwitch};
use crate::parameters::{ModuleKind, Parameter, Parameters, Role, join};
use crate::precision::ones;
use crate::weight::Weight;
use alluvium_core::{DType, Device, Error, Result, Tensor};
use alluvium_ops::{
    Over, Quantized, Transpose, add, cast, dequantize, embedding, exp, grouped_matmul, linear, log, matmul, mul, scale,
    sum, transpose,
};
use rayon::prelude::*;

/// LoRA or DoRA: `y = x · wᵀ + scale · (x · a) · b`, in DoRA with each row of the adapted matrix scaled to the length
/// `m`.
///
/// | kind      | base      | `lora_a`    | `lora_b`    | `m` |
/// |-----------|-----------|-------------|-------------|-----|
/// | linear    | `[O, I]`  | `[I, r]`    | `[r, O]`    | `O` |
/// | experts   | `[E, O, I]` | `[E, r, I]` | `[E, O, r]` | –   |
/// | embedding | `[V, D]`  | `[V, r]`    | `[r, D]`    | –   |
///
/// The names and layouts are those of mlx-lm. The base costs the backward pass no gradient.
///
/// Source: Hu et al. 2021, arXiv:2106.09685; Liu et al. 2024, arXiv:2402.09353.
#[derive(Clone, Debug)]
pub struct LowRank {
    base: Weight,
    kind: ModuleKind,
    a: Parameter,
    b: Parameter,
    magnitude: Option<Magnitude>,
    scale: f32,
    dropout: Option<Dropout>,
}

/// The trained lengths of the rows in DoRA.
#[derive(Clone, Debug)]
struct Magnitude {
    m: Parameter,
    /// The squared length of each row of the base, `[1, O]`.
    base_squares: Tensor,
}

/// The tensors of an update: f32, or rounded to half precision by a training run.
#[derive(Clone, Debug)]
pub struct Update {
    /// `lora_a`.
    pub a: Tensor,
    /// `lora_b`.
    pub b: Tensor,
    /// The lengths of the rows, in DoRA.
    pub m: Option<Tensor>,
    /// The factor of the update.
    pub scale: f32,
}

impl LowRank {
    /// A matrix with an update, whose tensors are trainable.
    ///
    /// # Errors
    /// When the shapes do not fit the matrix, the rank is above its smaller side, or DoRA is asked for of another kind
    /// than a linear projection. The error does not name the module.
    pub fn new(base: Weight, kind: ModuleKind, update: Update) -> Result<Self> {
        let Update { a, b, m, scale } = update;
        if m.is_some() && kind != ModuleKind::Linear {
            return Err(Error::value("adapter", "DoRA adapts linear projections; use LoRA for experts and embeddings"));
        }
        let shape = base.shape();
        let expected = |rank: usize| -> [Vec<usize>; 2] {
            match kind {
                ModuleKind::Linear => [vec![shape[1], rank], vec![rank, shape[0]]],
                ModuleKind::Experts => [vec![shape[0], rank, shape[2]], vec![shape[0], shape[1], rank]],
                ModuleKind::Embedding => [vec![shape[0], rank], vec![rank, shape[1]]],
            }
        };
        let sides = a.shape();
        let rank = if kind == ModuleKind::Experts { sides.dims().get(1) } else { sides.dims().last() };
        let rank = rank.copied().unwrap_or(0);
        let want = expected(rank);
        if [a.shape().dims(), b.shape().dims()] != [&want[0][..], &want[1][..]] {
            let why = format!("its tensors are {} and {}, expected {want:?} for {shape}", a.shape(), b.shape());
            return Err(Error::value("adapter", why));
        }
        check_rank(rank, &base)?;
        let magnitude = match m {
            None => None,
            Some(m) if m.shape().dims() == [shape[0]] => {
                let rows = shape[0];
                let base_squares = row_squares(&base)?.reshape([1, rows])?;
                Some(Magnitude { m: m.into(), base_squares })
            }
            Some(m) => {
                return Err(Error::value("adapter", format!("`m` is {}, expected [{}]", m.shape(), shape[0])));
            }
        };
        Ok(LowRank { base, kind, a: a.into(), b: b.into(), magnitude, scale, dropout: None })
    }

    /// With dropout of the inputs of the update, for training.
    pub(super) fn with_dropout(self, dropout: Option<Dropout>) -> Self {
        LowRank { dropout, ..self }
    }

    /// The switch of its dropout.
    pub(super) fn dropout_switch(&self) -> Option<&DropoutSwitch> {
        self.dropout.as_ref().map(|dropout| &dropout.switch)
    }

    /// The inputs of the update.
    fn dropped(&self, x: &Tensor) -> Result<Tensor> {
        self.dropout.as_ref().map_or_else(|| Ok(x.clone()), |dropout| dropout.apply(x))
    }

    /// The frozen matrix.
    pub fn base(&self) -> &Weight {
        &self.base
    }

    /// The frozen matrix alone.
    pub fn into_base(self) -> Weight {
        self.base
    }

    /// The tensors of the update.
    pub fn update(&self) -> Update {
        Update {
            a: self.a.detach(),
            b: self.b.detach(),
            m: self.magnitude.as_ref().map(|magnitude| magnitude.m.detach()),
            scale: self.scale,
        }
    }

    /// The use of the matrix.
    pub fn kind(&self) -> ModuleKind {
        self.kind
    }

    pub(crate) fn is_traced(&self) -> bool {
        let magnitude = self.magnitude.as_ref().is_some_and(|magnitude| magnitude.m.is_traced());
        self.base.is_traced() || self.a.is_traced() || self.b.is_traced() || magnitude
    }

    /// The factors in the dtype of the activations.
    fn factors(&self, dtype: DType) -> Result<[Tensor; 2]> {
        Ok([cast(&self.a, dtype)?, cast(&self.b, dtype)?])
    }

    pub(crate) fn linear(&self, x: &Tensor) -> Result<Tensor> {
        let inner = x.shape().last();
        let rows = x.elements() / inner.max(1);
        let x_ni = x.reshape([rows, inner])?;
        let y_no = self.base.linear(&x_ni)?;
        let x_ni = self.dropped(&x_ni)?;
        let [a, b] = &self.factors(x.dtype())?;
        // the factor goes where the tensor is smallest
        let z_no = match self.kind {
            ModuleKind::Embedding => {
                let z_nr = scale(&matmul(&x_ni, b, Transpose::Right)?, self.scale)?;
                matmul(&z_nr, a, Transpose::Right)?
            }
            _ => {
                let z_nr = scale(&matmul(&x_ni, a, Transpose::Neither)?, self.scale)?;
                matmul(&z_nr, b, Transpose::Neither)?
            }
        };
        let mut y_no = add(&y_no, &z_no)?;
        if let Some(magnitude) = &self.magnitude {
            // a column of ones times a row: the factor of each column for every row of `y`
            let factors = cast(&self.column_factors(magnitude)?, x.dtype())?;
            y_no = mul(&y_no, &matmul(&ones([rows, 1], x)?, &factors, Transpose::Neither)?)?;
        }
        let columns = y_no.shape().last();
        y_no.reshape(x.shape().with(x.shape().rank() - 1, columns))
    }

    /// `m` over the lengths of the adapted matrix's rows, `[1, O]`, f32. The lengths are constants to the gradient, as in
    /// the paper. They are computed from products with `a`, so the matrix is not dequantized.
    fn column_factors(&self, magnitude: &Magnitude) -> Result<Tensor> {
        let [a_ir, b_ro] = self.factors(DType::F32)?.map(|x| x.detach());
        let ones = Tensor::full([1, a_ir.shape()[1]], 1.0, a_ir.device())?;
        let over_rank = |x_ro: &Tensor| matmul(&ones, x_ro, Transpose::Neither);
        let a_ri = transpose(&a_ir, [0, 1])?;
        let cross = over_rank(&mul(&b_ro, &self.base.linear(&a_ri)?)?)?;
        let gram = matmul(&a_ir, &a_ir, Transpose::Left)?;
        let own = over_rank(&mul(&b_ro, &matmul(&gram, &b_ro, Transpose::Neither)?)?)?;
        let squares = add(&magnitude.base_squares, &scale(&cross, 2.0 * self.scale)?)?;
        let squares = add(&squares, &scale(&own, self.scale * self.scale)?)?;
        let inverse = exp(&scale(&log(&squares)?, -0.5)?)?;
        mul(&cast(&magnitude.m, DType::F32)?.reshape([1, inverse.elements()])?, &inverse)
    }

    pub(crate) fn grouped(&self, x: &Tensor, experts: &Tensor) -> Result<Tensor> {
        let y_nko = self.base.grouped(x, experts)?;
        let z_nkr = scale(&grouped_matmul(&self.dropped(x)?, &self.a, experts)?, self.scale)?;
        add(&y_nko, &grouped_matmul(&z_nkr, &self.b, experts)?)
    }

    pub(crate) fn embedding(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        let y = self.base.embedding(ids, dtype)?;
        let ([a, b], rank) = (self.factors(dtype)?, self.a.shape().last());
        let rows_nr = self.dropped(&embedding(&a, ids)?.reshape([ids.elements(), rank])?)?;
        let z_nr = scale(&rows_nr, self.scale)?;
        add(&y, &matmul(&z_nr, &b, Transpose::Neither)?.reshape(y.shape())?)
    }

    /// The adapted matrix as mlx-lm's `fuse` computes it: the base widened to `dtype`, the update in f32 rounded to it.
    ///
    /// # Errors
    /// As the operations.
    pub fn fused(&self, dtype: DType) -> Result<Tensor> {
        let base = widened(&self.base, dtype)?;
        let delta = self.delta()?;
        let fused = add(&base, &cast(&delta, dtype)?)?;
        let Some(magnitude) = &self.magnitude else { return Ok(fused) };
        let fused = cast(&fused, DType::F32)?;
        let [rows, columns] = [fused.shape()[0], fused.shape()[1]];
        let inverse = exp(&scale(&log(&sum(&mul(&fused, &fused)?, Over::Last)?)?, -0.5)?)?;
        let factors = mul(&cast(&magnitude.m.detach(), DType::F32)?, &inverse)?.reshape([rows, 1])?;
        let ones = Tensor::full([columns, 1], 1.0, fused.device())?;
        cast(&mul(&linear(&factors, &ones)?, &fused)?, dtype)
    }

    /// `scale · (a · b)ᵀ`, in the shape of the base.
    fn delta(&self) -> Result<Tensor> {
        let shape = self.base.shape();
        let [rows, columns] = [shape.elements() / shape.last(), shape.last()];
        let [a, b] = &self.factors(DType::F32)?.map(|x| x.detach());
        // `left [rows, r]` and `right [r, columns]`, the latter one for each expert
        let (left, right) = match self.kind {
            ModuleKind::Linear => (transpose(&scale(b, self.scale)?, [0, 1])?, transpose(a, [0, 1])?),
            ModuleKind::Experts => (scale(b, self.scale)?, a.clone()),
            ModuleKind::Embedding => (scale(a, self.scale)?, b.clone()),
        };
        let (rank, experts) = (left.shape().last(), right.elements() / columns / left.shape().last());
        let (left, right) = (left.to_vec::<f32>()?, right.to_vec::<f32>()?);
        let mut delta = vec![0f32; rows * columns];
        // in this order and without fused multiply-add, as the product that MLX calls on a CPU: bit-identical results
        delta.par_chunks_exact_mut(columns).zip(left.par_chunks_exact(rank)).enumerate().for_each(
            |(row, (y, left))| {
                let expert = row / (rows / experts);
                let right = &right[expert * rank * columns..][..rank * columns];
                for (&factor, right) in left.iter().zip(right.chunks_exact(columns)) {
                    y.iter_mut().zip(right).for_each(|(y, x)| *y += factor * x);
                }
            },
        );
        Tensor::from_slice(&delta, shape, self.a.device())
    }
}

/// The update comes after the matrix: `lora_a`, `lora_b`, `m`.
impl Parameters for LowRank {
    fn parameters<'a>(&'a self, prefix: &str, f: &mut dyn FnMut(String, &'a Tensor, Role)) {
        self.base.parameters(prefix, f);
        self.a.parameters(&join(prefix, A), f);
        self.b.parameters(&join(prefix, B), f);
        if let Some(magnitude) = &self.magnitude {
            magnitude.m.parameters(&join(prefix, M), f);
        }
    }

    fn parameters_mut<'a>(&'a mut self, prefix: &str, f: &mut dyn FnMut(String, &'a mut Tensor, &mut Role)) {
        self.base.parameters_mut(prefix, f);
        self.a.parameters_mut(&join(prefix, A), f);
        self.b.parameters_mut(&join(prefix, B), f);
        if let Some(magnitude) = &mut self.magnitude {
            magnitude.m.parameters_mut(&join(prefix, M), f);
        }
    }
}

/// The names of the update's tensors.
pub(super) const A: &str = "lora_a";
pub(super) const B: &str = "lora_b";
pub(super) const M: &str = "m";

/// Checks a rank against the sides of a matrix.
pub(super) fn check_rank(rank: usize, base: &Weight) -> Result<()> {
    let shape = base.shape();
    let most = shape.dims().iter().rev().take(2).copied().max().unwrap_or(0);
    match rank {
        0 => Err(Error::value("adapter", "the rank is 0, expected 1 or more")),
        rank if rank > most => {
            Err(Error::value("adapter", format!("the rank is {rank}, expected at most {most}: the matrix is {shape}")))
        }
        _ => Ok(()),
    }
}

/// The matrix widened to a dtype. As in MLX an affine one is rounded twice: the scaled codes, and then their sum
/// with the
/// biases.
pub(crate) fn widened(weight: &Weight, dtype: DType) -> Result<Tensor> {
    let Some(quantized) = weight.quantized() else { return cast(&weight.dense()?.detach(), dtype) };
    let Some(biases) = quantized.biases else { return dequantize(&quantized, dtype) };
    let zeros = |x: &Tensor| Tensor::zeros(x.shape(), x.dtype(), x.device());
    let (no_codes, no_scales, no_biases) = (zeros(quantized.w)?, zeros(quantized.scales)?, zeros(biases)?);
    let scaled = dequantize(&Quantized { biases: Some(&no_biases), ..quantized }, dtype)?;
    add(&scaled, &dequantize(&Quantized { w: &no_codes, scales: &no_scales, ..quantized }, dtype)?)
}

/// The squared length of each row of a matrix `[O, I]`: `[O]`, f32.
fn row_squares(weight: &Weight) -> Result<Tensor> {
    let w = widened(weight, DType::F32)?;
    sum(&mul(&w, &w)?, Over::Last)
}

/// The length of each row of a matrix `[O, I]`, with which DoRA begins.
pub(super) fn row_lengths(weight: &Weight, device: &Device) -> Result<Tensor> {
    let squares = row_squares(weight)?.to_vec::<f32>()?;
    let lengths: Vec<f32> = squares.iter().map(|square| square.sqrt()).collect();
    Tensor::from_slice(&lengths, [lengths.len()], device)
}
