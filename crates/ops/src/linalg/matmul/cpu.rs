//! One product after the other, or side by side where there are many.

use super::{Grad, MatmulSizes};
use alluvium_core::cpu::{Buffer, Cpu, MatRef, gemm};
use alluvium_core::{Result, Shape, Tensor};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, a: &Tensor, b: &Tensor, sizes: MatmulSizes, shape: Shape) -> Result<Tensor> {
    let MatmulSizes { m, k, n, .. } = sizes;
    let (lefts, rights) = (cpu.read(a)?, cpu.read(b)?);
    let c = products(cpu, shape.elements() / (m * n), m * n, |i, c| {
        let (a, b) = sizes.pair(&lefts[i * m * k..], &rights[i * k * n..])?;
        gemm(cpu, 1.0, a, b, 0.0, c)
    })?;
    cpu.tensor(c, shape, a.dtype())
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dc: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { a, b, sizes, dtypes } = saved;
    let MatmulSizes { m, k, n, transpose } = *sizes;
    let (lefts, rights, douts) = (cpu.read(a)?, cpu.read(b)?, cpu.read(dc)?);
    let count = douts.len() / (m * n);
    let [mut da, mut db] = [None, None];
    if need[0] {
        let to = products(cpu, count, m * k, |i, da| {
            let (_, b) = sizes.pair(&lefts[i * m * k..], &rights[i * k * n..])?;
            let dc = MatRef::new(&douts[i * m * n..], m, n)?;
            if transpose.left() { gemm(cpu, 1.0, b, dc.t(), 0.0, da) } else { gemm(cpu, 1.0, dc, b.t(), 0.0, da) }
        })?;
        da = Some(cpu.tensor(to, a.shape(), dtypes[0])?);
    }
    if need[1] {
        let to = products(cpu, count, k * n, |i, db| {
            let (a, _) = sizes.pair(&lefts[i * m * k..], &rights[i * k * n..])?;
            let dc = MatRef::new(&douts[i * m * n..], m, n)?;
            if transpose.right() { gemm(cpu, 1.0, dc.t(), a, 0.0, db) } else { gemm(cpu, 1.0, a.t(), dc, 0.0, db) }
        })?;
        db = Some(cpu.tensor(to, b.shape(), dtypes[1])?);
    }
    Ok([da, db])
}

impl MatmulSizes {
    /// The two sides of one product, as `[M, K]` and `[K, N]` however they are stored.
    fn pair<'a>(self, a: &'a [f32], b: &'a [f32]) -> Result<(MatRef<'a>, MatRef<'a>)> {
        let MatmulSizes { m, k, n, transpose } = self;
        let a = if transpose.left() { MatRef::new(a, k, m)?.t() } else { MatRef::new(a, m, k)? };
        let b = if transpose.right() { MatRef::new(b, n, k)?.t() } else { MatRef::new(b, k, n)? };
        Ok((a, b))
    }
}

/// `count` results of `size` values; `product` may itself use all threads.
fn products(
    cpu: &Cpu,
    count: usize,
    size: usize,
    product: impl Fn(usize, &mut [f32]) -> Result<()> + Sync,
) -> Result<Buffer<f32>> {
    let mut to = cpu.buffer(count * size)?;
    cpu.run(|| to.par_chunks_exact_mut(size).enumerate().try_for_each(|(i, to)| product(i, to)))?;
    Ok(to)
}
