//! Threads over rows, both ways.

use super::Grad;
use crate::quantized::cpu::Codes;
use crate::quantized::{PackedLayout, Quantized};
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Result, Shape, Tensor};

pub(super) fn forward(cpu: &Cpu, q: &Quantized<'_>, layout: PackedLayout, like: (Shape, DType)) -> Result<Tensor> {
    cpu.tensor(Codes::new(q, layout)?.dequantized(cpu)?, like.0, like.1)
}

pub(super) fn backward(cpu: &Cpu, saved: &Grad, dy: &Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
    let codes = Codes::new(&saved.q.quantized(), saved.layout)?;
    let dys = cpu.read(dy)?;
    let rows: Vec<usize> = (0..dys.len() / saved.layout.inner).collect();
    let grads = codes.scale_gradients_of(cpu, &rows, &dys)?;
    saved.q.gradients(cpu, grads, need)
}
