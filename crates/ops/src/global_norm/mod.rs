//! The Euclidean norm over all elements of a list of tensors.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, Device, Error, Kind, Result, Tensor, tape};

/// The contract of `global_norm`: any number of such tensors.
static CONTRACT: Contract = Contract { op: "global_norm", args: &[Arg::new("x", "R..", FLOATS)], rules: &[] };

/// Why there is no gradient.
const WHY: &str = "it measures gradients, which are not differentiated themselves";

/// The Euclidean norm of all elements of all tensors: `√(Σ x²)`, as `clip_grad_norm` needs it.
///
/// Squares and sums in f64, on a GPU in f32 with scaled sums of what it cannot square, in an order that depends on the
/// shapes alone.
///
/// | tensor | shape              | dtype          | gradient |
/// |--------|--------------------|----------------|----------|
/// | each   | `R..`, its own     | f32, f16, bf16 | no       |
/// | result | `[]`               | f32            |          |
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold, `Device` when two tensors live
/// on different devices; `Value` when there is no tensor; `NoGradient` when a traced tensor comes: detach it.
///
/// # Source
/// Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063.
pub fn global_norm(tensors: &[&Tensor]) -> Result<Tensor> {
    let Some(first) = tensors.first() else { return Err(Error::value(CONTRACT.op, "there is no tensor")) };
    for &x in tensors {
        CONTRACT.check(&[x])?;
        tape::no_gradient(CONTRACT.op, WHY, [x])?;
        if x.device() != first.device() {
            return Err(Kind::device(CONTRACT.op, ("tensors[0]", first.device()), ("another", x.device())).into());
        }
    }
    match first.device() {
        Device::Cpu(cpu) => cpu::norm(cpu, tensors),
        Device::Gpu(gpu) => gpu::norm(gpu, tensors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_any_shape_are_one_long_vector() {
        let device = Device::cpu();
        let (a, b) = (Tensor::full([3, 3], 1.0, &device).unwrap(), Tensor::full([4], 2.0, &device).unwrap());
        assert_eq!(global_norm(&[&a, &b]).unwrap().item().unwrap(), 5.0);
        assert_eq!(global_norm(&[]).unwrap_err().to_string(), "global_norm: there is no tensor");
    }

    #[test]
    fn squares_that_f32_cannot_hold_are_summed() {
        let x = Tensor::full([2, 8], 1e30, &Device::cpu()).unwrap();
        assert_eq!(global_norm(&[&x]).unwrap().item().unwrap(), 4e30);
    }
}
