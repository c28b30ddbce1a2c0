//! The sum of all elements or of rows.

mod entry;
mod reference;

pub(crate) use entry::OP;

use crate::common::gpu;
use crate::common::reduce::{Over, spread, sums};
use alluvium_core::contract::{FLOATS, Fill};
use alluvium_core::{Arg, Backward, Contract, Device, Result, Shape, Tensor, tape};

/// What `sum` takes. In tests most numbers have one sign: a sum near zero is all rounding.
static CONTRACT: Contract =
    Contract { op: "sum", args: &[Arg::new("x", "R.. D", FLOATS).filled(Fill::Uniform(-0.5, 1.0))], rules: &[] };

/// `Σ x`, over all elements or over the last axis.
///
/// | tensor | shape                   | dtype          | gradient |
/// |--------|-------------------------|----------------|----------|
/// | `x`    | `R.. D`                 | f32, f16, bf16 | yes      |
/// | result | `R..`, or `[]` over all | that of `x`    |          |
///
/// Lanes add up to 1024 numbers in f32, what they leave is added in f64: the same bits whatever the threads. A GPU
/// adds all in f32, in a tree. The gradient is that of the sum, for every element; the backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
pub fn sum(x: &Tensor, over: Over) -> Result<Tensor> {
    let x = &over.axis(x)?;
    let dims = CONTRACT.check(&[x])?;
    let (width, shape) = over.rows(&dims);
    let y = match x.device() {
        Device::Cpu(cpu) => sums(cpu, x, width, 1.0, shape)?,
        Device::Gpu(gpu) => gpu::reduce::sums(gpu, x, width, 1.0, shape)?,
    };
    tape::record([x], y, || Grad { from: x.shape(), width })
}

/// Every element of a row has the gradient of the row's sum.
struct Grad {
    from: Shape,
    width: usize,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dx = match dy.device() {
            Device::Cpu(cpu) => spread(cpu, &dy, self.width, 1.0, self.from)?,
            Device::Gpu(gpu) => gpu::reduce::spread(gpu, &dy, self.width, 1.0, self.from)?,
        };
        Ok([Some(dx)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::cpu::Cpu;

    #[test]
    fn a_tensor_without_axes_is_its_own_sum_mean_and_maximum() {
        let tape = alluvium_core::Tape::new();
        let x = tape.watch(&Tensor::full([], 3.0, &Device::cpu()).unwrap());
        for reduce in [sum, crate::mean, crate::max] {
            let y = reduce(&x, Over::All).unwrap();
            assert_eq!((y.item().unwrap(), y.shape().rank()), (3.0, 0));
            let dx = tape.backward(&[(&y, &Tensor::full([], 2.0, &Device::cpu()).unwrap())]).unwrap();
            assert_eq!(dx.of(&x).unwrap().item().unwrap(), 2.0);
            assert_eq!(sum(&x, Over::Last).unwrap_err().to_string(), "sum: `x` is [], expected [R.., D]");
        }
    }

    #[test]
    fn a_long_sum_is_accurate_and_the_same_on_any_number_of_threads() {
        let bits = [1, 2, 5].map(|threads| {
            let device = Cpu::builder().threads(threads).open().unwrap().into();
            let x = Tensor::full([1_000, 3_001], 0.1, &device).unwrap();
            sum(&x, Over::All).unwrap().item().unwrap().to_bits()
        });
        assert_eq!((bits[0], bits[0]), (bits[1], bits[2]));
        let want = f64::from(0.1f32) * 3_001_000.0;
        assert!((f64::from(f32::from_bits(bits[0])) - want).abs() < 1e-6 * want);
    }
}
