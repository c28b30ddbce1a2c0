//! Three products of matrices.

use super::Grad;
use alluvium_core::cpu::{Cpu, Mat, gemm};
use alluvium_core::{Dims, Result, Tensor};

pub(super) fn forward(cpu: &Cpu, x: &Tensor, w: &Tensor, dims: &Dims) -> Result<Tensor> {
    let (rows, inner, outer) = (dims['R'], dims['I'], dims['O']);
    let (xs, ws) = (cpu.read(x)?, cpu.read(w)?);
    let mut y = cpu.buffer(rows * outer)?;
    gemm(cpu, 1.0, Mat::new(&xs, rows, inner)?, Mat::new(&ws, outer, inner)?.t(), 0.0, &mut y)?;
    cpu.tensor(y, dims.shape("R.. O")?, x.dtype())
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { x, w } = saved;
    let (outer, inner) = (w.shape()[0], w.shape()[1]);
    let rows = x.elements() / inner;
    let dys = cpu.read(dy)?;
    let dys = Mat::new(&dys, rows, outer)?;
    let [mut dx, mut dw] = [None, None];
    if need[0] {
        let mut to = cpu.buffer(rows * inner)?;
        gemm(cpu, 1.0, dys, Mat::new(&cpu.read(w)?, outer, inner)?, 0.0, &mut to)?;
        dx = Some(cpu.tensor(to, x.shape(), x.dtype())?);
    }
    if need[1] {
        let mut to = cpu.buffer(outer * inner)?;
        gemm(cpu, 1.0, dys.t(), Mat::new(&cpu.read(x)?, rows, inner)?, 0.0, &mut to)?;
        dw = Some(cpu.tensor(to, w.shape(), w.dtype())?);
    }
    Ok([dx, dw])
}
