//! Repetition of key and value heads for grouped queries.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Backward, Contract, Device, Error, Result, Shape, Tensor, tape};

/// The contract of `repeat_heads`.
static CONTRACT: Contract = Contract { op: "repeat_heads", args: &[Arg::new("x", "B T H D", FLOATS)], rules: &[] };

/// Each head `times` times in a row: head `i` of the result is head `i / times` of `x`.
///
/// | tensor | shape             | dtype          | gradient |
/// |--------|-------------------|----------------|----------|
/// | `x`    | `B T H D`         | f32, f16, bf16 | yes      |
/// | result | `B T (H·times) D` | that of `x`    |          |
///
/// The gradient sums over the repeats in f32, in their order. The backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold; `Value` when `times` is 0.
pub fn repeat_heads(x: &Tensor, times: usize) -> Result<Tensor> {
    let dims = CONTRACT.check(&[x])?;
    let Some(heads) = dims['H'].checked_mul(times).filter(|&heads| heads > 0) else {
        return Err(Error::value(CONTRACT.op, format!("times is {times}, expected 1 or more")));
    };
    let shape = Shape::new(&[dims['B'], dims['T'], heads, dims['D']])?;
    let y = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, x, times, shape)?,
        Device::Gpu(gpu) => gpu::forward(gpu, x, times, shape)?,
    };
    tape::record([x], y, || Grad { from: x.shape(), times })
}

/// `dx[h] = Σ_r dy[h·times + r]`.
struct Grad {
    from: Shape,
    times: usize,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dx = match dy.device() {
            Device::Cpu(cpu) => cpu::backward(cpu, &dy, self.times, self.from)?,
            Device::Gpu(gpu) => gpu::backward(gpu, &dy, self.times, self.from)?,
        };
        Ok([Some(dx)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_repeated_in_place_and_not_in_turn() {
        let x = Tensor::from_slice(&[1.0f32, 2.0], [1, 1, 2, 1], &Device::cpu()).unwrap();
        let y = repeat_heads(&x, 3).unwrap();
        assert_eq!((y.shape()[2], y.to_vec::<f32>().unwrap()), (6, vec![1.0, 1.0, 1.0, 2.0, 2.0, 2.0]));
        let error = repeat_heads(&x, 0).unwrap_err().to_string();
        assert_eq!(error, "repeat_heads: times is 0, expected 1 or more");
    }
}
