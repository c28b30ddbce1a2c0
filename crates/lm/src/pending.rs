//! Plain stand-ins, without gradients, for operations that are about to enter the list.

use alluvium_core::{Error, Result, Tensor};

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
