//! Running sums.

use super::{From, REDUCTION, cpu, gpu};
use crate::op::{Array, Case, Cost, Gradient, Op};
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Backward, Contract, Device, Result, Tensor, tape};

/// The contract of `cumsum`.
static CONTRACT: Contract = Contract { op: "cumsum", args: &[Arg::new("x", "R.. D", FLOATS)], rules: &[] };

/// `y[j] = Σ_(i ≤ j) x[i]` along the last axis.
///
/// | tensor | shape   | dtype          | gradient |
/// |--------|---------|----------------|----------|
/// | `x`    | `R.. D` | f32, f16, bf16 | yes      |
/// | result | `R.. D` | that of `x`    |          |
///
/// A row is summed in order, in f64; on a GPU block by block in f32, and what the sum so far loses is added to the next
/// block. `dx[j] = Σ_(i ≥ j) dy[i]`, summed from the end; the backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
pub fn cumsum(x: &Tensor) -> Result<Tensor> {
    CONTRACT.check(&[x])?;
    tape::record([x], running(x, From::Start)?, || Grad)
}

fn running(x: &Tensor, from: From) -> Result<Tensor> {
    match x.device() {
        Device::Cpu(cpu) => cpu::running(cpu, x, from),
        Device::Gpu(gpu) => gpu::running(gpu, x, from),
    }
}

/// The running sum from the other end.
struct Grad;

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(running(&dy, From::End)?)])
    }
}

/// The definition, in f64.
fn forward(x: &Array) -> Array {
    let mut y = x.clone();
    for row in y.data.chunks_exact_mut(x.width()) {
        (1..row.len()).for_each(|i| row[i] += row[i - 1]);
    }
    y
}

/// Its gradient.
fn gradient(x: &Array, dy: &Array) -> Array {
    let mut dx = dy.clone();
    for row in dx.data.chunks_exact_mut(x.width()) {
        (1..row.len()).rev().for_each(|i| row[i - 1] += row[i]);
    }
    dx
}

/// The entry of `cumsum` in the list.
pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "cumulative sums of rows",
    run: |t| Ok(vec![cumsum(&t["x"])?]),
    reference: |t| vec![forward(&t["x"])],
    gradient: Gradient::Of(|t, dy| vec![Some(gradient(&t["x"], &dy[0]))]),
    cases: &[
        Case::new("one element", &[('R', 1), ('D', 1)]),
        Case::new("odd rows", &[('R', 3), ('D', 63)]),
        Case::new("a long row", &[('R', 1), ('D', 70_001)]),
        Case::new("many rows", &[('R', 7_001), ('D', 17)]),
    ],
    bench: &[Case::new("rows", &[('R', 4_096), ('D', 2_048)])],
    cost: |d| {
        let n = d['R'] * d['D'];
        Cost { bytes: 8 * n, flops: n, backward_bytes: 8 * n, backward_flops: n }
    },
    ..REDUCTION
};
