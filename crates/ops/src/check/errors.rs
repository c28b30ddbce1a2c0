//! Arguments that violate a contract, and the errors that operations return for them.

use super::Inputs;
use crate::op::{Case, Given, Op};
use alluvium_core::{DType, Device, Kind, Result, Shape, Tensor};

/// Passes each argument of a case in a wrong shape or dtype. Returns one line per violation that is accepted or has a
/// poor error.
///
/// # Errors
/// When the inputs cannot be made.
pub fn refusals(op: &Op, case: &Case, device: &Device) -> Result<Vec<String>> {
    let inputs = Inputs::new(op, case, DType::F32, device)?;
    let mut faults = Vec::new();
    for (index, arg) in op.contract.args.iter().enumerate() {
        let Some(x) = &inputs.tensors.args[index].1 else { continue };
        for broken in broken(x, arg.shape().contains("..") && arg.shape().split_whitespace().count() == 1)? {
            let mut given = inputs.tensors.clone();
            let what = format!("`{}` as {} {}", arg.name(), broken.shape(), broken.dtype());
            given.args[index].1 = Some(broken);
            if accepted_by(op, &given) {
                continue;
            }
            match (op.run)(&mut given) {
                Ok(_) => faults.push(format!("{what} was taken")),
                Err(error) => {
                    let text = error.to_string();
                    let kind = matches!(error.kind(), Kind::Shape { .. } | Kind::Dtype { .. });
                    let names = op.contract.args.iter().any(|arg| text.contains(&format!("`{}`", arg.name())));
                    if !kind || !text.starts_with(op.name()) || !names {
                        faults.push(format!("{what} was refused with an error that does not name it: {text}"));
                    }
                }
            }
        }
    }
    Ok(faults)
}

/// Whether the contract itself takes these arguments: a broken axis may be free.
fn accepted_by(op: &Op, given: &Given<Tensor>) -> bool {
    let args: Vec<Option<&Tensor>> = given.args.iter().map(|(_, x)| x.as_ref()).collect();
    op.contract.check(&args).is_ok()
}

/// Another dtype, an axis of length 0, one axis longer by one, and one axis more.
fn broken(x: &Tensor, any_shape: bool) -> Result<Vec<Tensor>> {
    let (shape, device) = (x.shape(), x.device());
    let other = if x.dtype() == DType::U32 { DType::F32 } else { DType::U32 };
    let mut all = vec![Tensor::zeros(shape, other, device)?];
    for axis in 0..shape.rank() {
        all.push(Tensor::zeros(shape.with(axis, 0), x.dtype(), device)?);
        all.push(Tensor::zeros(shape.with(axis, shape[axis] + 1), x.dtype(), device)?);
    }
    if !any_shape && shape.rank() < alluvium_core::MAX_RANK {
        let mut longer = shape.to_vec();
        longer.push(2);
        all.push(Tensor::zeros(Shape::new(&longer)?, x.dtype(), device)?);
    }
    Ok(all)
}
