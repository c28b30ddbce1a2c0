//! Rows times a weight matrix.

mod cpu;
mod entry;
mod reference;

pub(crate) use entry::OP;

use crate::common::no_kernel;
use alluvium_core::contract::{FLOATS, SAME};
use alluvium_core::{Arg, Backward, Contract, Device, Result, Tensor, tape};

/// What `linear` takes.
static CONTRACT: Contract =
    Contract { op: "linear", args: &[Arg::new("x", "R.. I", FLOATS), Arg::new("w", "O I", SAME)], rules: &[] };

/// Every row of `x` times the transpose of `w`: `y = x · wᵀ`, without a bias.
///
/// | tensor | shape   | dtype          | gradient |
/// |--------|---------|----------------|----------|
/// | `x`    | `R.. I` | f32, f16, bf16 | yes      |
/// | `w`    | `O I`   | that of `x`    | yes      |
/// | result | `R.. O` | that of `x`    |          |
///
/// Products are summed in f32. The backward pass keeps `x` and `w`.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape), `Dtype` or `Device` where the table does not hold.
///
/// # Source
/// The layer that checkpoints store as `weight [out, in]`; same numbers as `mlx.nn.Linear(bias=False)`.
pub fn linear(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let dims = CONTRACT.check(&[x, w])?;
    let y = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, x, w, &dims)?,
        Device::Wgpu(gpu) => no_kernel(CONTRACT.op, gpu)?,
    };
    tape::record([x, w], y, || Grad { x: x.detach(), w: w.detach() })
}

/// `dx = dy · w` and `dw = dyᵀ · x`.
struct Grad {
    x: Tensor,
    w: Tensor,
}

impl Backward<2> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, need: [bool; 2]) -> Result<[Option<Tensor>; 2]> {
        match self.x.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &self, &dy, need),
            Device::Wgpu(gpu) => no_kernel(CONTRACT.op, gpu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Tape;

    #[test]
    fn a_vector_is_a_row_without_leading_axes() {
        let device = Device::cpu();
        let x = Tensor::from_slice(&[1.0f32, 2.0], [2], &device).unwrap();
        let w = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0, 3.0, -1.0], [3, 2], &device).unwrap();
        let y = linear(&x, &w).unwrap();
        assert_eq!((y.shape()[..].to_vec(), y.to_vec::<f32>().unwrap()), (vec![3], vec![1.0, 2.0, 1.0]));
    }

    #[test]
    fn a_frozen_weight_costs_no_gradient() {
        let device = Device::cpu();
        let tape = Tape::new();
        let x = tape.watch(&Tensor::full([4, 8], 1.0, &device).unwrap());
        let w = Tensor::full([2, 8], 0.5, &device).unwrap();
        let y = linear(&x, &w).unwrap();
        let grads = tape.backward(&[(&y, &Tensor::full([4, 2], 1.0, &device).unwrap())]).unwrap();
        assert_eq!(grads.of(&x).unwrap().to_vec::<f32>().unwrap(), [1.0; 32]);
        assert!(grads.of(&w).is_none());
    }
}
