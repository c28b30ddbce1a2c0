//! The largest element, and its index.

use super::{Over, REDUCTION, by_row, cpu, gpu, gradient_by_row, over};
use crate::op::{Array, Case, Gradient, Op, Tolerance};
use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Backward, Contract, Device, Error, Result, Shape, Tensor, tape};

/// The contract of `max`.
static CONTRACT: Contract = Contract { op: "max", args: &[Arg::new("x", "R.. D", FLOATS)], rules: &[] };

/// The contract of `argmax`.
static ARGMAX_CONTRACT: Contract = Contract { op: "argmax", args: &[Arg::new("x", "R.. D", FLOATS)], rules: &[] };

/// Why `argmax` has no gradient.
const NO_GRADIENT: &str = "an index does not change with the elements";

/// The largest element, over all elements or over the last axis.
///
/// | tensor | shape                   | dtype          | gradient |
/// |--------|-------------------------|----------------|----------|
/// | `x`    | `R.. D`                 | f32, f16, bf16 | yes      |
/// | result | `R..`, or `[]` over all | that of `x`    |          |
///
/// A NaN counts as smaller than any element. The gradient goes to the largest element, the first of equal ones; the
/// backward pass keeps its index.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold.
pub fn max(x: &Tensor, over: Over) -> Result<Tensor> {
    let x = &over.axis(x)?;
    let (width, shape) = over.rows(&CONTRACT.check(&[x])?);
    let (y, at) = match x.device() {
        Device::Cpu(cpu) => cpu::max(cpu, x, width, shape)?,
        Device::Gpu(gpu) => gpu::max(gpu, x, width, shape)?,
    };
    tape::record([x], y, || Grad { from: x.shape(), width, at })
}

/// `dy` where the largest element is, 0 elsewhere.
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
            Device::Cpu(cpu) => cpu::max_backward(cpu, &dy, &self.at, self.width, self.from)?,
            Device::Gpu(gpu) => gpu::max_backward(gpu, &dy, &self.at, self.width, self.from)?,
        };
        Ok([Some(dx)])
    }
}

/// The index of the largest element in the last axis: the first of equal ones.
///
/// | tensor | shape   | dtype          | gradient |
/// |--------|---------|----------------|----------|
/// | `x`    | `R.. D` | f32, f16, bf16 | no       |
/// | result | `R..`   | u32            |          |
///
/// A NaN counts as smaller than any element.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold; `Value` when a row is too long
/// for u32; `NoGradient` when a traced tensor comes.
pub fn argmax(x: &Tensor) -> Result<Tensor> {
    let dims = ARGMAX_CONTRACT.check(&[x])?;
    tape::no_gradient(ARGMAX_CONTRACT.op, NO_GRADIENT, [x])?;
    let (width, shape) = Over::Last.rows(&dims);
    if u32::try_from(width).is_err() {
        return Err(Error::value(ARGMAX_CONTRACT.op, format!("the indices of {} do not fit in u32", x.shape())));
    }
    match x.device() {
        Device::Cpu(cpu) => cpu.wrap(cpu::argmax(cpu, &cpu.read(x)?, width)?, shape),
        Device::Gpu(gpu) => gpu::argmax(gpu, &gpu.widen(x)?, width, shape),
    }
}

/// The index of the largest, the first of equal ones, in f64.
fn reference(row: &[f64]) -> usize {
    (1..row.len()).fold(0, |at, i| if row[i] > row[at] { i } else { at })
}

/// The entry of `max` in the list.
pub(crate) static MAX: Op = Op {
    contract: &CONTRACT,
    summary: "the largest of all elements or of rows",
    run: |t| Ok(vec![max(&t["x"], over(t))?]),
    reference: |t| by_row(t, |row| row[reference(row)]),
    gradient: Gradient::Of(|t, dy| gradient_by_row(t, &dy[0], |row, dy, dx| dx[reference(row)] = dy)),
    tolerance: Tolerance::EXACT,
    ..REDUCTION
};

/// The entry of `argmax` in the list.
pub(crate) static ARGMAX: Op = Op {
    contract: &ARGMAX_CONTRACT,
    summary: "the index of the largest element of each row",
    results: &["at"],
    run: |t| Ok(vec![argmax(&t["x"])?]),
    reference: |t| {
        let at: Vec<f64> = t["x"].rows().map(|row| reference(row) as f64).collect();
        vec![Array::new([at.len()], at)]
    },
    gradient: Gradient::None(NO_GRADIENT),
    tolerance: Tolerance::EXACT,
    cases: &[
        Case::new("one element", &[('R', 1), ('D', 1)]).zeros(&["at"]),
        Case::new("odd rows", &[('R', 3), ('D', 63)]),
        Case::new("one more than a register", &[('R', 9), ('D', 17)]),
        Case::new("a vocabulary", &[('R', 2), ('D', 150_001)]),
    ],
    bench: &[Case::new("a decode's logits", &[('R', 1), ('D', 248_320)])],
    ..REDUCTION
};

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
        assert_eq!(grads.get(&x).unwrap().to_vec::<f32>().unwrap(), [0.0, 1.0, 0.0, 0.0, 2.0, 0.0]);
    }

    #[test]
    fn of_equal_elements_the_first_is_named() {
        let mut row = vec![-1.0f32; 100];
        row[37] = 5.0;
        row[90] = 5.0;
        row[3] = f32::NAN;
        let at = argmax(&Tensor::from_slice(&row, [100], &Device::cpu()).unwrap()).unwrap();
        assert_eq!((at.shape().rank(), at.to_vec::<u32>().unwrap()), (0, vec![37]));
    }
}
