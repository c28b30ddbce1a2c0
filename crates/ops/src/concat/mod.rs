//! Concatenation of tensors along an axis.

mod entry;
mod reference;

pub(crate) use entry::OP;

use crate::common::pieces::{Axis, Piece, join};
use alluvium_core::contract::{ANY, SAME};
use alluvium_core::{Arg, BackwardAll, Contract, Error, Kind, Result, Tensor, tape};

/// The contract of `concat`: for the check: any number of parts of any rank may come, so the function words its own
/// errors.
static CONTRACT: Contract = Contract {
    op: "concat",
    args: &[
        Arg::new("parts", "A N C", ANY),
        Arg::new("parts[1]", "A M C", SAME),
        Arg::new("parts[2]", "A K C", SAME).optional(),
    ],
    rules: &[],
};

/// Parts that are joined without a list of them in memory.
const FEW: usize = 8;

/// One after the other along an axis.
///
/// | tensor  | shape                                  | dtype            | gradient      |
/// |---------|----------------------------------------|------------------|---------------|
/// | `parts` | equal but at `axis`                    | any              | yes, if float |
/// | result  | theirs, the sum of their axes at `axis` | that of the parts |              |
///
/// The gradient is cut like the parts; the backward pass keeps nothing.
///
/// # Errors
/// [`Kind::Shape`], `Dtype` or `Device` where the parts do not fit the first of them; `Value` when there is none or it
/// has no such axis.
pub fn concat(parts: &[&Tensor], axis: usize) -> Result<Tensor> {
    let Some(first) = parts.first() else { return Err(Error::value(CONTRACT.op, "there are no parts to join")) };
    Axis::of(CONTRACT.op, first.shape(), axis)?;
    for part in parts {
        let (op, arg, got) = (CONTRACT.op, "parts", part.shape());
        if got.contains(&0) {
            return Err(Kind::Shape { op, arg, got, want: "no axis of length 0".to_owned() }.into());
        }
        if got.rank() != first.shape().rank() || got.with(axis, 1) != first.shape().with(axis, 1) {
            let want = format!("{} like the first part, but at axis {axis}", first.shape());
            return Err(Kind::Shape { op, arg, got, want }.into());
        }
        if part.dtype() != first.dtype() {
            let want = format!("{} like the first part", first.dtype());
            return Err(Kind::Dtype { op, arg, got: part.dtype(), want }.into());
        }
        if part.device() != first.device() {
            return Err(Kind::device(op, ("parts[0]", first.device()), ("another part", part.device())).into());
        }
    }
    let y = joined(parts, first, axis)?;
    if !parts.iter().any(|part| part.is_traced()) {
        return Ok(y);
    }
    let sizes = || parts.iter().map(|part| part.shape()[axis]).collect();
    let inputs: Vec<Option<&Tensor>> = parts.iter().map(|&part| Some(part)).collect();
    let results = tape::record_all(&inputs, vec![y], || Grad { axis, sizes: sizes() })?;
    results.into_iter().next().ok_or_else(|| Error::value(CONTRACT.op, "the tape lost the result"))
}

fn joined<'a>(parts: &[&'a Tensor], like: &Tensor, axis: usize) -> Result<Tensor> {
    let all = |part: &&'a Tensor| -> Piece<'a> { Piece::Of(part, 0..part.shape()[axis]) };
    let mut few: [Piece<'_>; FEW] = std::array::from_fn(|_| Piece::Zeros(0));
    if parts.len() <= FEW {
        few.iter_mut().zip(parts).for_each(|(piece, part)| *piece = all(part));
        return join(CONTRACT.op, like, like.shape(), axis, &few[..parts.len()]);
    }
    join(CONTRACT.op, like, like.shape(), axis, &parts.iter().map(all).collect::<Vec<_>>())
}

/// Each part's gradient is its stretch of `dy`.
struct Grad {
    axis: usize,
    sizes: Vec<usize>,
}

impl BackwardAll for Grad {
    fn op(&self) -> &'static str {
        CONTRACT.op
    }

    fn moves(&self) -> bool {
        true
    }

    fn backward(self, dy: Vec<Option<Tensor>>, need: &[bool]) -> Result<Vec<Option<Tensor>>> {
        let Some(dy) = dy.into_iter().flatten().next() else { return Ok(vec![None; need.len()]) };
        let mut first = 0;
        let part = |(&size, &need): (&usize, &bool)| {
            let piece = Piece::Of(&dy, first..first + size);
            first += size;
            let cut = || join(CONTRACT.op, &dy, dy.shape(), self.axis, &[piece]);
            need.then(cut).transpose()
        };
        self.sizes.iter().zip(need).map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alluvium_core::{DType, Device, Tape};

    #[test]
    fn parts_that_do_not_fit_are_errors() {
        let device = Device::cpu();
        let (x, y) = (Tensor::full([2, 3], 1.0, &device).unwrap(), Tensor::full([2, 4], 1.0, &device).unwrap());
        let ids = Tensor::zeros([2, 3], DType::U32, &device).unwrap();
        let said = |parts: &[&Tensor], axis| concat(parts, axis).unwrap_err().to_string();
        assert_eq!(said(&[&x, &y], 0), "concat: `parts` is [2, 4], expected [2, 3] like the first part, but at axis 0");
        assert_eq!(said(&[&x, &ids], 0), "concat: `parts` is u32, expected f32 like the first part");
        assert_eq!(said(&[&x], 2), "concat: there is no axis 2 in [2, 3]");
        assert_eq!(said(&[], 0), "concat: there are no parts to join");
        assert_eq!(concat(&[&x, &y, &x], 1).unwrap().shape()[..], [2, 10]);
    }

    #[test]
    fn a_part_that_is_not_traced_costs_no_gradient() {
        let (tape, device) = (Tape::new(), Device::cpu());
        let x = tape.watch(&Tensor::full([1, 2], 1.0, &device).unwrap());
        let y = concat(&[&Tensor::full([1, 1], 5.0, &device).unwrap(), &x, &x], 1).unwrap();
        let dy = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0], [1, 5], &device).unwrap();
        assert_eq!(tape.backward(&[(&y, &dy)]).unwrap().get(&x).unwrap().to_vec::<f32>().unwrap(), [6.0, 8.0]);
    }
}
