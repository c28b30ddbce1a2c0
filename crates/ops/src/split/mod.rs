//! An axis cut into parts.

mod entry;
mod reference;

pub(crate) use entry::OP;

use crate::common::pieces::{Axis, Piece, join};
use alluvium_core::contract::ANY;
use alluvium_core::{Arg, BackwardAll, Contract, Error, Result, Shape, Tensor, tape};

/// What `split` takes.
static CONTRACT: Contract = Contract { op: "split", args: &[Arg::new("x", "R.. D", ANY)], rules: &[] };

/// Cuts an axis into parts of these sizes.
///
/// | tensor  | shape                            | dtype       | gradient      |
/// |---------|----------------------------------|-------------|---------------|
/// | `x`     | `R.. D`                          | any         | yes, if float |
/// | results | that of `x`, `sizes[i]` at `axis` | that of `x` |              |
///
/// The parts are copies. The gradient joins theirs in one pass; a part that nothing was computed from counts as zeros.
/// The backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`](alluvium_core::Kind::Shape) for a tensor without axes; `Value` when there is no such axis, a size is
/// 0 or the sizes do not sum to its length.
pub fn split(x: &Tensor, sizes: &[usize], axis: usize) -> Result<Vec<Tensor>> {
    CONTRACT.check(&[x])?;
    let Axis { len, .. } = Axis::of(CONTRACT.op, x.shape(), axis)?;
    let sum = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
    if sum != Some(len) || sizes.contains(&0) {
        return Err(Error::value(CONTRACT.op, format!("{sizes:?} does not cut axis {axis} of {} in parts", x.shape())));
    }
    let mut parts = Vec::with_capacity(sizes.len());
    let mut first = 0;
    for size in sizes {
        let piece = Piece::Of(x, first..first + size);
        parts.push(join(CONTRACT.op, x, x.shape(), axis, &[piece])?);
        first += size;
    }
    tape::record_all(&[Some(x)], parts, || Grad { from: x.shape(), axis, sizes: sizes.to_vec() })
}

/// `dx` is what the parts' gradients join to.
struct Grad {
    from: Shape,
    axis: usize,
    sizes: Vec<usize>,
}

impl BackwardAll for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: Vec<Option<Tensor>>, _need: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(any) = dy.iter().flatten().next() else { return Ok(vec![None]) };
        let piece = |(dy, &size): (_, &usize)| match dy {
            Some(dy) => Piece::Of(dy, 0..size),
            None => Piece::Zeros(size),
        };
        let pieces: Vec<Piece> = dy.iter().map(Option::as_ref).zip(&self.sizes).map(piece).collect();
        Ok(vec![Some(join(CONTRACT.op, any, self.from, self.axis, &pieces)?)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::{Device, Tape};

    #[test]
    fn a_part_that_nothing_came_from_has_a_gradient_of_zeros() {
        let tape = Tape::new();
        let x = tape.watch(&Tensor::full([2, 5], 1.0, &Device::cpu()).unwrap());
        let parts = split(&x, &[1, 3, 1], 1).unwrap();
        let grads = tape.backward(&[(&parts[1], &Tensor::full([2, 3], 2.0, &Device::cpu()).unwrap())]).unwrap();
        let want = [0.0, 2.0, 2.0, 2.0, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0];
        assert_eq!(grads.of(&x).unwrap().to_vec::<f32>().unwrap(), want);
    }

    #[test]
    fn sizes_that_do_not_cut_the_axis_are_refused() {
        let x = Tensor::full([2, 5], 1.0, &Device::cpu()).unwrap();
        for sizes in [&[1, 3][..], &[5, 0], &[2, 4], &[usize::MAX, 6], &[]] {
            let error = split(&x, sizes, 1).unwrap_err().to_string();
            assert_eq!(error, format!("split: {sizes:?} does not cut axis 1 of [2, 5] in parts"));
        }
    }
}
