//! Splits of an axis into parts.

mod entry;
mod reference;

pub(crate) use entry::OP;

use crate::common::pieces::{Axis, Piece, join};
use alluvium_core::contract::ANY;
use alluvium_core::{Arg, BackwardAll, BackwardMany, Contract, Error, Result, Shape, Tensor, tape};
use std::ops::Range;

/// The contract of `split`.
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
    check(x, sizes, axis)?;
    let mut parts = Vec::with_capacity(sizes.len());
    let mut first = 0;
    for size in sizes {
        parts.push(part(x, first..first + size, axis)?);
        first += size;
    }
    tape::record_all(&[Some(x)], parts, || Grad { from: x.shape(), axis, sizes: sizes.to_vec() })
}

/// As [`split`], where the number of parts is known.
///
/// # Errors
/// As [`split`].
pub fn split_in<const N: usize>(x: &Tensor, sizes: [usize; N], axis: usize) -> Result<[Tensor; N]> {
    check(x, &sizes, axis)?;
    let (mut first, mut failed) = (0, None);
    let parts = sizes.map(|size| {
        first += size;
        part(x, first - size..first, axis).unwrap_or_else(|error| {
            failed = Some(error);
            x.clone()
        })
    });
    failed.map_or(Ok(()), Err)?;
    tape::record_many([x], parts, || Grad { from: x.shape(), axis, sizes: sizes.to_vec() })
}

fn check(x: &Tensor, sizes: &[usize], axis: usize) -> Result<()> {
    CONTRACT.check(&[x])?;
    let Axis { len, .. } = Axis::of(CONTRACT.op, x.shape(), axis)?;
    let sum = sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size));
    if sum != Some(len) || sizes.contains(&0) {
        return Err(Error::value(CONTRACT.op, format!("{sizes:?} does not cut axis {axis} of {} in parts", x.shape())));
    }
    Ok(())
}

fn part(x: &Tensor, range: Range<usize>, axis: usize) -> Result<Tensor> {
    join(CONTRACT.op, x, x.shape(), axis, &[Piece::Of(x, range)])
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
        Ok(vec![self.joined(&dy)?])
    }
}

impl<const N: usize> BackwardMany<1, N> for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn backward(self, dy: [Option<Tensor>; N], _need: [bool; 1]) -> Result<[Option<Tensor>; 1]> {
        Ok([self.joined(&dy)?])
    }
}

impl Grad {
    fn joined(&self, dy: &[Option<Tensor>]) -> Result<Option<Tensor>> {
        let Some(any) = dy.iter().flatten().next() else { return Ok(None) };
        let piece = |(dy, &size): (_, &usize)| match dy {
            Some(dy) => Piece::Of(dy, 0..size),
            None => Piece::Zeros(size),
        };
        let pieces: Vec<Piece> = dy.iter().map(Option::as_ref).zip(&self.sizes).map(piece).collect();
        Ok(Some(join(CONTRACT.op, any, self.from, self.axis, &pieces)?))
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
        assert_eq!(grads.get(&x).unwrap().to_vec::<f32>().unwrap(), want);
    }

    #[test]
    fn a_known_number_of_parts_are_the_same_parts_with_the_same_gradient() {
        let device = Device::cpu();
        let data: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let (mut all, seed) = (Vec::new(), Tensor::full([2, 3], 2.0, &device).unwrap());
        for known in [false, true] {
            let tape = Tape::new();
            let x = tape.watch(&Tensor::from_slice(&data, [2, 5], &device).unwrap());
            let parts = if known { split_in(&x, [2, 3], 1).unwrap().into() } else { split(&x, &[2, 3], 1).unwrap() };
            let mut seen: Vec<Vec<f32>> = parts.iter().map(|part| part.to_vec().unwrap()).collect();
            let grads = tape.backward(&[(&parts[1], &seed)]).unwrap();
            seen.push(grads.get(&x).unwrap().to_vec().unwrap());
            all.push(seen);
        }
        assert_eq!(all[0], all[1]);
        assert!(split_in(&seed, [1, 1], 1).is_err());
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
