//! Transposition of two axes.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::ANY;
use alluvium_core::{Arg, Backward, Contract, Device, Error, Result, Tensor, tape};

/// The contract of `transpose`.
static CONTRACT: Contract = Contract { op: "transpose", args: &[Arg::new("x", "R.. D", ANY)], rules: &[] };

/// `x` with two of its axes exchanged: a copy, tile by tile.
///
/// | tensor | shape                    | dtype       | gradient      |
/// |--------|--------------------------|-------------|---------------|
/// | `x`    | `R.. D`                  | any         | yes, if float |
/// | result | `x`'s, `axes` exchanged  | that of `x` |               |
///
/// The gradient is exchanged back; the backward pass keeps nothing. A product of matrices needs no transpose: `matmul`
/// takes one per side.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) for a tensor without axes; `Value` when one of the axes is not there.
pub fn transpose(x: &Tensor, axes: [usize; 2]) -> Result<Tensor> {
    CONTRACT.check(&[x])?;
    let (low, high) = (axes[0].min(axes[1]), axes[0].max(axes[1]));
    if high >= x.shape().rank() {
        return Err(Error::value(CONTRACT.op, format!("there is no axis {high} in {}", x.shape())));
    }
    let y = match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, x, low, high)?,
        Device::Gpu(gpu) => gpu::forward(gpu, x, low, high)?,
    };
    tape::record([x], y, || Grad { axes })
}

/// The same exchange of `dy`.
struct Grad {
    axes: [usize; 2],
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn moves(&self) -> bool {
        true
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(transpose(&dy, self.axes)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_two_axes_of_integers_are_swapped() {
        let x = Tensor::from_slice(&(0..24u32).collect::<Vec<_>>(), [2, 3, 4], &Device::cpu()).unwrap();
        let y = transpose(&x, [2, 0]).unwrap();
        assert_eq!(
            (y.shape()[..].to_vec(), y.to_vec::<u32>().unwrap()[..5].to_vec()),
            (vec![4, 3, 2], vec![0, 12, 4, 16, 8])
        );
        assert_eq!(transpose(&x, [1, 1]).unwrap().to_vec::<u32>().unwrap(), x.to_vec::<u32>().unwrap());
        assert_eq!(transpose(&x, [0, 3]).unwrap_err().to_string(), "transpose: there is no axis 3 in [2, 3, 4]");
    }
}
