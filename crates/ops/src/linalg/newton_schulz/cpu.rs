//! Three products a step. A tall matrix is not transposed: `Xᵀ·X` and `X·(…)` are the same polynomial from its other
//! side.

use super::{COEFFICIENTS, EPS};
use crate::global_norm;
use alluvium_core::cpu::{Cpu, MatRef, gemm};
use alluvium_core::{Dims, Result, Tensor};

pub(super) fn forward(cpu: &Cpu, x: &Tensor, steps: usize, dims: &Dims) -> Result<Tensor> {
    let (rows, cols) = (dims['M'], dims['N']);
    let (short, tall) = (rows.min(cols), rows > cols);
    let factor = 1.0 / (f64::from(global_norm(&[x])?.item()?) + EPS);
    let mut now = cpu.buffer::<f32>(rows * cols)?;
    now.iter_mut().zip(&cpu.read(x)?[..]).for_each(|(now, &x)| *now = (f64::from(x) * factor) as f32);
    let mut next = cpu.buffer::<f32>(rows * cols)?;
    let (mut square, mut inner) = (cpu.buffer::<f32>(short * short)?, cpu.buffer::<f32>(short * short)?);
    let [a, b, c] = COEFFICIENTS.map(|x| x as f32);
    for _ in 0..steps {
        let x = MatRef::new(&now, rows, cols)?;
        let (left, right) = if tall { (x.t(), x) } else { (x, x.t()) };
        gemm(cpu, 1.0, left, right, 0.0, &mut square)?;
        inner.copy_from_slice(&square);
        let s = MatRef::new(&square, short, short)?;
        gemm(cpu, c, s, s, b, &mut inner)?;
        next.copy_from_slice(&now);
        let inner = MatRef::new(&inner, short, short)?;
        let (left, right) = if tall { (x, inner) } else { (inner, x) };
        gemm(cpu, 1.0, left, right, a, &mut next)?;
        std::mem::swap(&mut now, &mut next);
    }
    cpu.tensor(now, x.shape(), x.dtype())
}
