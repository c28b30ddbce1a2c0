//! Conversion to another floating dtype.

use super::UNARY;
use crate::common::stored::{Stored, by_storage};
use crate::op::{Case, Cost, Given, Gradient, Op, Oversize, Tolerance};
use alluvium_core::contract::FLOATS;
use alluvium_core::cpu::Cpu;
use alluvium_core::{Arg, Backward, Contract, DType, Device, Error, Result, Tensor, tape};
use rayon::prelude::*;

/// The contract of `cast`.
static CONTRACT: Contract = Contract { op: "cast", args: &[Arg::new("x", "R..", FLOATS).weight()], rules: &[] };

/// The elements of `x` stored as `dtype`: rounded to nearest, ties to even. To the dtype it has, it is `x` itself.
///
/// | tensor | shape | dtype          | gradient            |
/// |--------|-------|----------------|---------------------|
/// | `x`    | `R..` | f32, f16, bf16 | yes, not rounded    |
/// | result | `R..` | `dtype`        |                     |
///
/// The gradient is cast back to the dtype of `x`, or to f32. The backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Dtype`](alluvium_core::Kind::Dtype) where the table does not hold; `Value` when `dtype` is no floating type.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    CONTRACT.check(&[x])?;
    if !dtype.is_float() {
        return Err(Error::value(CONTRACT.op, format!("cannot store as {dtype}, expected f32, f16 or bf16")));
    }
    if dtype == x.dtype() {
        return Ok(x.clone());
    }
    let y = match x.device() {
        Device::Cpu(cpu) => by_storage!(x.dtype(), From => by_storage!(dtype, To => convert::<From, To>(cpu, x)))?,
        Device::Gpu(gpu) => gpu.convert(x, dtype)?,
    };
    tape::record([x], y, || Grad { dtype: x.gradient_dtype() })
}

/// `dx = dy`, in the dtype of the gradient of `x`.
struct Grad {
    dtype: DType,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(cast(&dy, self.dtype)?)])
    }
}

/// Elements that are widened and rounded at a time.
const BLOCK: usize = 1024;

/// Block by block through f32, so that every pair of dtypes is one pass.
fn convert<From: Stored, To: Stored>(cpu: &Cpu, x: &Tensor) -> Result<Tensor> {
    let from = x.slice::<From>()?;
    let mut to = cpu.buffer::<To>(from.len())?;
    let grain = cpu.grain(from.len(), 1);
    cpu.run(|| {
        to.par_chunks_mut(grain).zip(from.par_chunks(grain)).for_each(|(to, from)| {
            let (mut read, mut write) = ([0.0; BLOCK], [0.0; BLOCK]);
            for (to, from) in to.chunks_mut(BLOCK).zip(from.chunks(BLOCK)) {
                let numbers = From::widen(from, &mut read);
                To::open(to, &mut write).copy_from_slice(numbers);
                To::close(to, &write);
            }
        });
    });
    cpu.wrap(to, x.shape())
}

/// The storage dtype with this many fraction bits; f16 where a case does not say.
fn storage<T>(t: &Given<T>) -> DType {
    match t.option("fraction") {
        Some(23.0) => DType::F32,
        Some(7.0) => DType::BF16,
        _ => DType::F16,
    }
}

/// The entry of `cast` in the list. The reference changes nothing: storage changes no element by more than its
/// rounding.
pub(crate) static OP: Op = Op {
    contract: &CONTRACT,
    summary: "the same elements in another dtype",
    run: |t| Ok(vec![cast(&t["x"], storage(t))?]),
    reference: |t| vec![t["x"].clone()],
    gradient: Gradient::Of(|_, dy| vec![Some(dy[0].clone())]),
    // what half-precision storage rounds is allowed for everywhere; nothing else may change
    tolerance: Tolerance::EXACT,
    oversize: Oversize::CutElements,
    cases: &[
        Case::new("one element to f16", &[('R', 1)]),
        Case::new("to f16", &[('R', 3 * 63)]).options(&[("fraction", 10.0)]),
        Case::new("to bf16", &[('R', 17)]).options(&[("fraction", 7.0)]),
        Case::new("to f32", &[('R', 65)]).options(&[("fraction", 23.0)]),
        Case::new("more than a thread's share", &[('R', 70_001)]).options(&[("fraction", 7.0)]),
    ],
    cost: |d| Cost { bytes: 6 * d['R'], flops: 0, backward_bytes: 6 * d['R'], backward_flops: 0 },
    ..UNARY
};

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Tape;

    #[test]
    fn a_cast_rounds_to_the_nearest_and_ties_to_even() {
        let x = Tensor::from_slice(&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1e30f32], [3], &Device::cpu()).unwrap();
        let bf16 = cast(&x, DType::BF16).unwrap();
        assert_eq!(bf16.to_floats().unwrap()[..2], [1.0, 1.0 + 4.0 / 256.0]);
        assert_eq!(cast(&bf16, DType::F16).unwrap().to_floats().unwrap(), [1.0, 1.015_625, f32::INFINITY]);
        assert_eq!(cast(&x, DType::F32).unwrap().slice::<f32>().unwrap().as_ptr(), x.slice::<f32>().unwrap().as_ptr());
    }

    #[test]
    fn the_gradient_has_the_dtype_of_the_argument() {
        let tape = Tape::new();
        let x = tape.watch(&Tensor::full([5], 3.0, &Device::cpu()).unwrap());
        let y = cast(&x, DType::BF16).unwrap();
        let dy = cast(&Tensor::full([5], 0.5, &Device::cpu()).unwrap(), DType::BF16).unwrap();
        assert_eq!(tape.backward(&[(&y, &dy)]).unwrap().get(&x).unwrap().to_vec::<f32>().unwrap(), [0.5; 5]);
    }

    #[test]
    fn a_cast_to_integers_is_refused() {
        let x = Tensor::full([5], 3.0, &Device::cpu()).unwrap();
        let error = cast(&x, DType::U32).unwrap_err().to_string();
        assert_eq!(error, "cast: cannot store as u32, expected f32, f16 or bf16");
    }
}
