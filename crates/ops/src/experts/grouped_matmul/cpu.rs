//! One product an expert, each way.

use super::{CONTRACT, Grad};
use crate::common::stored::by_storage;
use crate::experts::cpu::{self as product, Choices, sorted_rows};
use crate::linalg::weights::Dense;
use alluvium_core::cpu::{Cpu, MatRef, gemm};
use alluvium_core::{Dims, Result, Tensor};
use rayon::prelude::*;

pub(super) fn forward(cpu: &Cpu, x: &Tensor, w: &Tensor, ids: &Tensor, dims: &Dims) -> Result<Tensor> {
    let choices = &Choices::new(CONTRACT.op, ids, dims)?;
    let xs = cpu.read(x)?;
    let y = by_storage!(w.dtype(), T => {
        let weights = Dense::<T> { data: w.slice()?, inner: dims['I'] };
        product::forward(cpu, &weights, dims['O'], choices, &xs)?
    });
    cpu.tensor(y, dims.shape("N K O")?, x.dtype())
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let Grad { x, w, experts, dims, dw_dtype } = saved;
    let choices = &Choices::new(CONTRACT.op, experts, dims)?;
    let dys = cpu.read(dy)?;
    let [mut dx, mut dw] = [None, None];
    if need[0] {
        let to = by_storage!(w.dtype(), T => {
            let weights = Dense::<T> { data: w.slice()?, inner: dims['I'] };
            product::back(cpu, &weights, dims['O'], choices, &dys)?
        });
        dx = Some(cpu.tensor(to, x.shape(), x.dtype())?);
    }
    if need[1] {
        let (inner, outer, xs) = (dims['I'], dims['O'], cpu.read(x)?);
        let mut to = cpu.buffer(w.elements())?;
        let mut places = vec![0..0; dims['E']];
        choices.jobs().iter().for_each(|(expert, own)| places[*expert] = own.clone());
        cpu.run(|| {
            to.par_chunks_mut(outer * inner).zip(places).try_for_each(|(dw, places)| {
                if places.is_empty() {
                    dw.fill(0.0);
                    return Ok(());
                }
                let [xs, dys] = sorted_rows(cpu, choices, &places, [(&xs, inner), (&dys, outer)])?;
                let (a, b) = (MatRef::new(&dys, places.len(), outer)?.t(), MatRef::new(&xs, places.len(), inner)?);
                gemm(cpu, 1.0, a, b, 0.0, dw)
            })
        })?;
        dw = Some(cpu.tensor(to, w.shape(), *dw_dtype)?);
    }
    Ok([dx, dw])
}
