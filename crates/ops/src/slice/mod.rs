//! A slice of an axis.

mod entry;
pub(crate) mod reference;

pub(crate) use entry::OP;

use crate::common::pieces::{Axis, Piece, join};
use alluvium_core::contract::ANY;
use alluvium_core::{Arg, Backward, Contract, Error, Result, Shape, Tensor, tape};
use std::ops::Range;

/// The contract of `slice`.
static CONTRACT: Contract = Contract { op: "slice", args: &[Arg::new("x", "R.. D", ANY)], rules: &[] };

/// The places `range` of an axis, all of the others.
///
/// | tensor | shape                              | dtype       | gradient     |
/// |--------|------------------------------------|-------------|--------------|
/// | `x`    | `R.. D`                            | any         | yes, if float|
/// | result | that of `x`, `range.len()` at `axis` | that of `x` |            |
///
/// A copy; [`Tensor::rows`] is a view where no gradient is wanted. The gradient is zero outside of `range`. The
/// backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) for a tensor without axes; `Value` when there is no such axis or the
/// range is empty or ends past it.
pub fn slice(x: &Tensor, axis: usize, range: Range<usize>) -> Result<Tensor> {
    CONTRACT.check(&[x])?;
    let Axis { len, .. } = Axis::of(CONTRACT.op, x.shape(), axis)?;
    if range.is_empty() || range.end > len {
        return Err(Error::value(CONTRACT.op, format!("there is no {range:?} along axis {axis} of {}", x.shape())));
    }
    let y = join(CONTRACT.op, x, x.shape(), axis, &[Piece::Of(x, range.clone())])?;
    tape::record([x], y, || Grad { from: x.shape(), axis, range })
}

/// `dx` is `dy` with zeros before and after.
struct Grad {
    from: Shape,
    axis: usize,
    range: Range<usize>,
}

impl Backward<1> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn moves(&self) -> bool {
        true
    }

    fn backward(self, dy: Tensor, _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        let Grad { from, axis, range } = self;
        let after = from[axis] - range.end;
        let pieces = [Piece::Zeros(range.start), Piece::Of(&dy, 0..range.len()), Piece::Zeros(after)];
        Ok([Some(join(CONTRACT.op, &dy, from, axis, &pieces)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::Device;

    #[test]
    fn integers_are_sliced_along_any_axis() {
        let ids: Vec<u32> = (0..24).collect();
        let x = Tensor::from_slice(&ids, [2, 3, 4], &Device::cpu()).unwrap();
        assert_eq!(slice(&x, 0, 1..2).unwrap().to_vec::<u32>().unwrap(), ids[12..]);
        assert_eq!(slice(&x, 1, 1..2).unwrap().to_vec::<u32>().unwrap(), [4, 5, 6, 7, 16, 17, 18, 19]);
        assert_eq!(slice(&x, 2, 3..4).unwrap().to_vec::<u32>().unwrap(), [3, 7, 11, 15, 19, 23]);
    }

    #[test]
    fn an_axis_or_a_range_that_is_not_there_is_refused() {
        let x = Tensor::full([2, 3], 1.0, &Device::cpu()).unwrap();
        let said = |axis, range| slice(&x, axis, range).unwrap_err().to_string();
        assert_eq!(said(2, 0..1), "slice: there is no axis 2 in [2, 3]");
        assert_eq!(said(1, 2..4), "slice: there is no 2..4 along axis 1 of [2, 3]");
        assert_eq!(said(1, 2..2), "slice: there is no 2..2 along axis 1 of [2, 3]");
    }
}
