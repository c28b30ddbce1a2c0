//! The largest of all elements or of rows.

mod cpu;
mod entry;
mod gpu;
pub(crate) mod reference;

pub(crate) use entry::OP;

use crate::common::reduce::Over;
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Backward, Contract, Device, Result, Shape, Tensor, tape};

/// What `max` takes.
static CONTRACT: Contract = Contract { op: "max", args: &[Arg::new("x", "R.. D", FLOATS)], rules: &[] };

/// The largest element, of all or of the last axis.
///
/// | tensor | shape                   | dtype          | gradient |
/// |--------|-------------------------|----------------|----------|
/// | `x`    | `R.. D`                 | f32, f16, bf16 | yes      |
/// | result | `R..`, or `[]` over all | that of `x`    |          |
///
/// A NaN counts as smaller than any number. The gradient goes to the largest element, the first of equal ones; the
/// backward pass keeps its place.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
pub fn max(x: &Tensor, over: Over) -> Result<Tensor> {
    let x = &over.axis(x)?;
    let dims = CONTRACT.check(&[x])?;
    let (width, shape) = over.rows(&dims);
    let (y, at) = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, x, width, shape)?,
        Device::Gpu(gpu) => gpu::forward(gpu, x, width, shape)?,
    };
    tape::record([x], y, || Grad { from: x.shape(), width, at })
}

/// `dy` where the largest is, 0 elsewhere.
struct Grad {
    from: Shape,
    width: usize,
    at: Tensor,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dx = match dy.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &dy, &self.at, self.width, self.from)?,
            Device::Gpu(gpu) => gpu::backward(gpu, &dy, &self.at, self.width, self.from)?,
        };
        Ok([Some(dx)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Tape;

    #[test]
    fn of_equal_elements_the_first_has_the_gradient_and_a_nan_is_no_maximum() {
        let tape = Tape::new();
        let x = [[3.0, 7.0, 7.0], [f32::NAN, -2.0, f32::NEG_INFINITY]].concat();
        let x = tape.watch(&Tensor::from_slice(&x, [2, 3], &Device::cpu()).unwrap());
        let y = max(&x, Over::Last).unwrap();
        assert_eq!(y.to_vec::<f32>().unwrap(), [7.0, -2.0]);
        let dy = Tensor::from_slice(&[1.0f32, 2.0], [2], &Device::cpu()).unwrap();
        let grads = tape.backward(&[(&y, &dy)]).unwrap();
        assert_eq!(grads.of(&x).unwrap().to_vec::<f32>().unwrap(), [0.0, 1.0, 0.0, 0.0, 2.0, 0.0]);
    }
}
