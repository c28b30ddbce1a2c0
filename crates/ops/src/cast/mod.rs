//! Another storage for the same numbers.

mod cpu;
mod entry;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Backward, Contract, DType, Device, Error, Result, Tensor, tape};

/// What `cast` takes.
static CONTRACT: Contract = Contract { op: "cast", args: &[Arg::new("x", "R..", FLOATS)], rules: &[] };

/// The numbers of `x` stored as `dtype`: rounded to nearest, ties to even. To the dtype it has, it is `x` itself.
///
/// | tensor | shape | dtype          | gradient |
/// |--------|-------|----------------|----------|
/// | `x`    | `R..` | f32, f16, bf16 | yes      |
/// | result | `R..` | `dtype`        |          |
///
/// The gradient is cast back to the dtype of `x`. The backward pass keeps nothing.
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
        Device::Cpu(cpu) => cpu::forward(cpu, x, dtype)?,
        Device::Gpu(gpu) => gpu.convert(x, dtype)?,
    };
    tape::record([x], y, || Grad { from: x.dtype() })
}

/// `dx = dy`, in the dtype that `x` has.
struct Grad {
    from: DType,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(cast(&dy, self.from)?)])
    }
}

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
        assert_eq!(tape.backward(&[(&y, &dy)]).unwrap().of(&x).unwrap().to_vec::<f32>().unwrap(), [0.5; 5]);
    }

    #[test]
    fn a_cast_to_whole_numbers_is_refused() {
        let x = Tensor::full([5], 3.0, &Device::cpu()).unwrap();
        let error = cast(&x, DType::U32).unwrap_err().to_string();
        assert_eq!(error, "cast: cannot store as u32, expected f32, f16 or bf16");
    }
}
