//! Three products of matrices. A weight in half precision is widened in registers or block by block: no copy of it
//! exists.

use super::Grad;
use crate::common::stored::by_storage;
use crate::linalg::weights::{Dense, multiply, multiply_back};
use alluvium_core::cpu::{Cpu, MatRef, gemm};
use alluvium_core::{Dims, Result, Tensor};

pub(super) fn forward(cpu: &Cpu, x: &Tensor, w: &Tensor, dims: &Dims) -> Result<Tensor> {
    let (rows, inner, outer) = (dims['R'], dims['I'], dims['O']);
    let xs = cpu.read(x)?;
    let mut y = cpu.buffer(rows * outer)?;
    by_storage!(w.dtype(), T => multiply(cpu, &Dense::<T> { data: w.slice()?, inner }, 0..outer, &xs, &mut y)?);
    cpu.tensor(y, dims.shape("R.. O")?, x.dtype())
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { x, w, dw_dtype } = saved;
    let (outer, inner) = (w.shape()[0], w.shape()[1]);
    let rows = x.elements() / inner;
    let dys = cpu.read(dy)?;
    let [mut dx, mut dw] = [None, None];
    if need[0] {
        let mut to = cpu.buffer(rows * inner)?;
        by_storage!(w.dtype(), T => {
            multiply_back(cpu, &Dense::<T> { data: w.slice()?, inner }, 0..outer, &dys, &mut to)?;
        });
        dx = Some(cpu.tensor(to, x.shape(), x.dtype())?);
    }
    if need[1] {
        let mut to = cpu.buffer(outer * inner)?;
        let dys = MatRef::new(&dys, rows, outer)?;
        gemm(cpu, 1.0, dys.t(), MatRef::new(&cpu.read(x)?, rows, inner)?, 0.0, &mut to)?;
        dw = Some(cpu.tensor(to, w.shape(), *dw_dtype)?);
    }
    Ok([dx, dw])
}
