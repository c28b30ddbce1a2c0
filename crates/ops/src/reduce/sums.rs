//! Sums and means.

use super::{Over, REDUCTION, by_row, cpu, gpu, gradient_by_row, over};
use crate::op::{Case, Fill, Gradient, Op, Tolerance};
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Backward, Contract, Device, Result, Shape, Tensor, tape};

/// The contract of `sum`. In tests most elements have one sign: a sum near zero is all rounding.
static SUM_CONTRACT: Contract = Contract { op: "sum", args: &[Arg::new("x", "R.. D", FLOATS)], rules: &[] };

/// The contract of `mean`.
static MEAN_CONTRACT: Contract = Contract { op: "mean", args: &[Arg::new("x", "R.. D", FLOATS)], rules: &[] };

/// `Σ x`, over all elements or over the last axis.
///
/// | tensor | shape                   | dtype          | gradient |
/// |--------|-------------------------|----------------|----------|
/// | `x`    | `R.. D`                 | f32, f16, bf16 | yes      |
/// | result | `R..`, or `[]` over all | that of `x`    |          |
///
/// Up to 1024 elements are added in f32, the sums of such parts in f64: bit-identical on any number of threads. A GPU
/// adds all in f32, in a tree. The gradient is that of the sum, for every element; the backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
pub fn sum(x: &Tensor, over: Over) -> Result<Tensor> {
    let x = &over.axis(x)?;
    let (width, shape) = over.rows(&SUM_CONTRACT.check(&[x])?);
    scaled_sum(&SUM_CONTRACT, x, (width, shape), 1.0)
}

/// `Σ x / n`, over all elements or over the last axis.
///
/// | tensor | shape                   | dtype          | gradient |
/// |--------|-------------------------|----------------|----------|
/// | `x`    | `R.. D`                 | f32, f16, bf16 | yes      |
/// | result | `R..`, or `[]` over all | that of `x`    |          |
///
/// Up to 1024 elements are added in f32, the sums of such parts in f64: bit-identical on any number of threads. A GPU
/// adds all in f32, in a tree. The gradient is that of the mean over `n`, for every element; the backward pass keeps
/// nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
pub fn mean(x: &Tensor, over: Over) -> Result<Tensor> {
    let x = &over.axis(x)?;
    let (width, shape) = over.rows(&MEAN_CONTRACT.check(&[x])?);
    scaled_sum(&MEAN_CONTRACT, x, (width, shape), 1.0 / width as f64)
}

/// `factor` times the sum of each row of `width` elements.
fn scaled_sum(contract: &'static Contract, x: &Tensor, (width, shape): (usize, Shape), factor: f64) -> Result<Tensor> {
    let y = match x.device() {
        Device::Cpu(cpu) => cpu::sums(cpu, x, width, factor, shape)?,
        Device::Gpu(gpu) => gpu::sums(gpu, x, width, factor as f32, shape)?,
    };
    tape::record([x], y, || Grad { op: contract.op, from: x.shape(), width, factor: factor as f32 })
}

/// Every element of a row has `factor` times the gradient of the row's result.
struct Grad {
    op: &'static str,
    from: Shape,
    width: usize,
    factor: f32,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        self.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let dx = match dy.device() {
            Device::Cpu(cpu) => cpu::spread(cpu, &dy, self.width, self.factor, self.from)?,
            Device::Gpu(gpu) => gpu::spread(gpu, &dy, self.width, self.factor, self.from)?,
        };
        Ok([Some(dx)])
    }
}

/// The entry of `sum` in the list.
pub(crate) static SUM: Op = Op {
    contract: &SUM_CONTRACT,
    summary: "the sum of all elements or of rows",
    run: |t| Ok(vec![sum(&t["x"], over(t))?]),
    reference: |t| by_row(t, |row| row.iter().sum()),
    gradient: Gradient::Of(|t, dy| gradient_by_row(t, &dy[0], |_, dy, dx| dx.fill(dy))),
    tolerance: Tolerance::F32_SUMS,
    fills: &[("x", Fill::Uniform(-0.5, 1.0))],
    ..REDUCTION
};

/// The entry of `mean` in the list.
pub(crate) static MEAN: Op = Op {
    contract: &MEAN_CONTRACT,
    summary: "the mean of all elements or of rows",
    run: |t| Ok(vec![mean(&t["x"], over(t))?]),
    reference: |t| by_row(t, |row| row.iter().sum::<f64>() / row.len() as f64),
    gradient: Gradient::Of(|t, dy| gradient_by_row(t, &dy[0], |row, dy, dx| dx.fill(dy / row.len() as f64))),
    tolerance: Tolerance::F32_SUMS,
    fills: &[("x", Fill::Uniform(-0.5, 1.0))],
    // no longer, because a long row's gradient is below the normal range of f16
    cases: &[
        Case::new("one element", &[('R', 1), ('D', 1)]).options(&[("last", 1.0)]),
        Case::new("odd rows", &[('R', 3), ('D', 63)]).options(&[("last", 1.0)]),
        Case::new("everything", &[('R', 5), ('D', 17)]),
        Case::new("everything, in several parts", &[('R', 3), ('D', 1_101)]),
        Case::new("rows longer than a part", &[('R', 9), ('D', 1_101)]).options(&[("last", 1.0)]),
        Case::new("more than a thread's share", &[('R', 70_001), ('D', 3)]).options(&[("last", 1.0)]),
    ],
    ..REDUCTION
};

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::cpu::Cpu;

    #[test]
    fn a_tensor_without_axes_is_its_own_sum_mean_and_maximum() {
        let tape = alluvium_core::Tape::new();
        let x = tape.watch(&Tensor::full([], 3.0, &Device::cpu()).unwrap());
        for reduce in [sum, mean, crate::max] {
            let y = reduce(&x, Over::All).unwrap();
            assert_eq!((y.item().unwrap(), y.shape().rank()), (3.0, 0));
            let dx = tape.backward(&[(&y, &Tensor::full([], 2.0, &Device::cpu()).unwrap())]).unwrap();
            assert_eq!(dx.get(&x).unwrap().item().unwrap(), 2.0);
            assert!(reduce(&x, Over::Last).is_err());
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
