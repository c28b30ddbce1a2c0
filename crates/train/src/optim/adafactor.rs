//! Adafactor: squared gradients as the outer product of their row and column means.

use alluvium_core::{DType, Result, Tensor};
use alluvium_ops::{
    Over, Transpose, add, clip_by_norm, concat, exp, global_norm, log, matmul, mean, mul, relu, scale, sub,
};

/// The constants of Adafactor, with MLX's defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adafactor {
    /// Added to squared gradients, and the least size of a parameter that steps are relative to.
    pub eps: [f32; 2],
    /// The largest root mean square of an update before the learning rate.
    pub clip_threshold: f32,
    /// The exponent of the decay of squared gradients: `1 − step^decay_rate`.
    pub decay_rate: f32,
    /// Decay of the mean of updates; without it none is kept.
    pub beta1: Option<f32>,
    /// Whether steps are relative to the parameter's root mean square.
    pub scale_parameter: bool,
    /// Whether the learning rate is `min(1e-2, 1/√step)` in the place of the given one.
    pub relative_step: bool,
    /// Whether the relative learning rate begins at `1e-6 · step`.
    pub warmup_init: bool,
}

impl Default for Adafactor {
    fn default() -> Self {
        Adafactor {
            eps: [1e-30, 1e-3],
            clip_threshold: 1.0,
            decay_rate: -0.8,
            beta1: None,
            scale_parameter: true,
            relative_step: true,
            warmup_init: false,
        }
    }
}

impl Adafactor {
    /// One step of a parameter in f32. `moments` has the means of squares of rows and of columns, or of elements where
    /// the parameter is a vector, and then the mean of updates; it is empty before the first step.
    ///
    /// Returns the parameter and the moments.
    ///
    /// # Source
    /// Shazeer and Stern 2018, arXiv:1804.04235; `mlx.optimizers.Adafactor`.
    ///
    /// # Errors
    /// As the operations.
    pub(super) fn step(
        &self,
        parameter: &Tensor,
        gradient: &Tensor,
        mut moments: Vec<Tensor>,
        (learning_rate, weight_decay, step): (f32, f32, u32),
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let gradient = &alluvium_ops::cast(gradient, DType::F32)?;
        let beta2 = 1.0 - (step as f32).powf(self.decay_rate);
        let momentum =
            self.beta1.and_then(|_| (moments.len() > self.squares(parameter)).then(|| moments.pop()).flatten());
        let squares = shifted(&mul(gradient, gradient)?, self.eps[0])?;
        let (update, mut kept) = match parameter.shape().rank() {
            0 | 1 => {
                let mean = decayed(moments.first(), beta2, &squares)?;
                (mul(&inverse_root(&mean)?, gradient)?, vec![mean])
            }
            _ => factored(gradient, &squares, &moments, beta2)?,
        };
        let count = (update.elements() as f32).sqrt();
        let norm = global_norm(&[&update])?;
        let update = clip_by_norm(update, &norm, self.clip_threshold * count)?;
        let rate = self.learning_rate(learning_rate, step);
        let mut update = scale(&update, rate)?;
        let mut fade = scale(parameter, rate * weight_decay)?;
        if self.scale_parameter {
            // the parameter's size stays on its device
            let rms = scale(&global_norm(&[parameter])?, (parameter.elements() as f32).sqrt().recip())?;
            let size = shifted(&relu(&shifted(&rms, -self.eps[1])?)?, self.eps[1])?;
            update = times(&update, &size)?;
            fade = times(&fade, &size)?;
        }
        if let Some(beta1) = self.beta1 {
            update = decayed(Some(&momentum.map_or_else(|| scale(&update, 0.0), Ok)?), beta1, &update)?;
            kept.push(update.clone());
        }
        let faded = if weight_decay == 0.0 { parameter.detach() } else { sub(parameter, &fade)? };
        Ok((sub(&faded, &update)?, kept))
    }

    /// The number of means of squares.
    fn squares(&self, parameter: &Tensor) -> usize {
        if parameter.shape().rank() < 2 { 1 } else { 2 }
    }

    fn learning_rate(&self, given: f32, step: u32) -> f32 {
        if !self.relative_step {
            return given;
        }
        let most = if self.warmup_init { 1e-6 * step as f32 } else { 1e-2 };
        most.min((step as f32).sqrt().recip())
    }
}

/// The update of a matrix `[R, C]`, or of each matrix of a stack `[.., R, C]`, and its means of rows `[.., R]` and of
/// columns `[.., C]`.
fn factored(gradient: &Tensor, squares: &Tensor, moments: &[Tensor], beta2: f32) -> Result<(Tensor, Vec<Tensor>)> {
    let shape = gradient.shape();
    let [rows, columns] = [shape[shape.rank() - 2], shape[shape.rank() - 1]];
    let matrices = shape.elements() / (rows * columns).max(1);
    let ones = Tensor::full([1, rows], (rows as f32).recip(), gradient.device())?;
    let stack = |x: &Tensor| x.reshape([matrices * rows, columns]);
    let (squares, gradients) = (stack(squares)?, stack(gradient)?);
    let row_means = mean(&squares, Over::Last)?.reshape([matrices, rows])?;
    let column_means = each(matrices, |i| matmul(&ones, &squares.rows(i * rows, rows)?, Transpose::Neither))?;
    let of_rows = decayed(moments.first(), beta2, &row_means)?;
    let of_columns = decayed(moments.get(1), beta2, &column_means)?;
    let update = each(matrices, |i| {
        let [row, column] = [of_rows.rows(i, 1)?, of_columns.rows(i, 1)?];
        let whole = mean(&row, Over::Last)?.reshape([1, 1])?;
        // √(mean / row) · 1 / √column, as an outer product
        let by_row = times(&inverse_root(&row)?, &exp(&scale(&log(&whole)?, 0.5)?)?)?;
        let factors = matmul(&by_row.reshape([rows, 1])?, &inverse_root(&column)?, Transpose::Neither)?;
        mul(&factors, &gradients.rows(i * rows, rows)?)
    })?;
    Ok((update.reshape(shape)?, vec![of_rows, of_columns]))
}

/// The results of all matrices of a stack, one below the other.
fn each(matrices: usize, f: impl Fn(usize) -> Result<Tensor>) -> Result<Tensor> {
    let all = (0..matrices).map(f).collect::<Result<Vec<Tensor>>>()?;
    concat(&all.iter().collect::<Vec<_>>(), 0)
}

/// `beta · old + (1 − beta) · new`; zeros come before the first.
fn decayed(old: Option<&Tensor>, beta: f32, new: &Tensor) -> Result<Tensor> {
    let new_part = scale(new, 1.0 - beta)?;
    match old {
        Some(old) => add(&scale(old, beta)?, &new_part),
        None => Ok(new_part),
    }
}

fn inverse_root(x: &Tensor) -> Result<Tensor> {
    exp(&scale(&log(x)?, -0.5)?)
}

fn shifted(x: &Tensor, by: f32) -> Result<Tensor> {
    add(x, &Tensor::full(x.shape(), by, x.device())?)
}

/// A tensor times one element.
fn times(x: &Tensor, factor: &Tensor) -> Result<Tensor> {
    matmul(&x.reshape([x.elements(), 1])?, &factor.reshape([1, 1])?, Transpose::Neither)?.reshape(x.shape())
}
