//! Plain stand-ins, without gradients, for operations that are about to enter the list.

use alluvium_core::{Error, Result, Tensor};

fn map(a: &Tensor, b: &Tensor, f: impl Fn(f32, f32) -> f32) -> Result<Tensor> {
    let data: Vec<f32> = a.slice::<f32>()?.iter().zip(b.slice::<f32>()?).map(|(a, b)| f(*a, *b)).collect();
    Tensor::from_slice(&data, a.shape(), a.device())
}

pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    map(a, b, |a, b| a + b)
}

pub(crate) fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    map(a, b, |a, b| a * b)
}

pub(crate) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    map(x, x, |x, _| 1.0 / (1.0 + (-x).exp()))
}

pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    map(gate, up, |g, u| g / (1.0 + (-g).exp()) * u)
}

/// Along the last axis only.
pub(crate) fn split(x: &Tensor, sizes: &[usize], _axis: usize) -> Result<Vec<Tensor>> {
    let (shape, width) = (x.shape(), x.shape().last());
    let mut from = 0;
    let mut parts = vec![];
    for &size in sizes {
        let rows = x.slice::<f32>()?.chunks(width);
        let data: Vec<f32> = rows.flat_map(|row| row[from..from + size].iter().copied()).collect();
        parts.push(Tensor::from_slice(&data, shape.with(shape.rank() - 1, size), x.device())?);
        from += size;
    }
    Ok(parts)
}

pub(crate) fn concat(_parts: &[&Tensor], _axis: usize) -> Result<Tensor> {
    Err(Error::value("concat", "not there yet"))
}

pub(crate) fn write_rows(cache: Tensor, rows: &Tensor, at: usize) -> Result<Tensor> {
    let width = rows.elements() / rows.shape()[0];
    let mut data = cache.to_floats()?;
    data[at * width..][..rows.elements()].copy_from_slice(rows.slice::<f32>()?);
    Tensor::from_slice(&data, cache.shape(), cache.device())
}

/// How a token is chosen.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// 0 is off.
    pub top_k: usize,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub min_p: f32,
}

pub(crate) fn sample(logits: &Tensor, _sampling: &Sampling, _draws: &[f32]) -> Result<Tensor> {
    let best = logits.slice::<f32>()?.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
    Tensor::from_slice(&[best as u32], [1], logits.device())
}
