//! The place of the largest element of each row.

mod cpu;
mod entry;
mod gpu;
mod reference;

pub(crate) use entry::OP;

use alluvium_core::contract::FLOATS;
use alluvium_core::{Arg, Contract, Device, Error, Result, Tensor, tape};

/// The contract of `argmax`.
static CONTRACT: Contract = Contract { op: "argmax", args: &[Arg::new("x", "R.. D", FLOATS)], rules: &[] };

/// Why there is no gradient.
const NO_GRADIENT: &str = "a place does not move when the numbers do";

/// Where in the last axis the largest element is: the first of equal ones.
///
/// | tensor | shape   | dtype          | gradient |
/// |--------|---------|----------------|----------|
/// | `x`    | `R.. D` | f32, f16, bf16 | no       |
/// | result | `R..`   | u32            |          |
///
/// A NaN counts as smaller than any number.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) or `Dtype` where the table does not hold; `Value` when a row is too long
/// for u32; `NoGradient` when a traced tensor comes.
pub fn argmax(x: &Tensor) -> Result<Tensor> {
    let dims = CONTRACT.check(&[x])?;
    tape::no_gradient(CONTRACT.op, NO_GRADIENT, [x])?;
    if u32::try_from(dims['D']).is_err() {
        return Err(Error::value(CONTRACT.op, format!("the places of {} do not fit in u32", x.shape())));
    }
    match x.device() {
        Device::Cpu(cpu) => cpu::forward(cpu, x, &dims),
        Device::Gpu(gpu) => gpu::forward(gpu, x, &dims),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
