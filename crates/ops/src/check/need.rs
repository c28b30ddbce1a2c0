//! Whether a gradient costs what it needs: an input that is not traced takes neither time nor memory.

use super::inputs::Inputs;
use super::{Ran, once};
use crate::op::{Array, Case, Op};
use alluvium_core::cpu::Cpu;
use alluvium_core::{DType, Device, Result, Tensor};

/// Bytes of gradients above which leaving them out must lower the peak; below, the pool's size classes hide it.
const VISIBLE: usize = 1 << 16;
/// Operations whose gradients are the result's own: nothing is allocated for them.
const SHARED: &[&str] = &["add", "sub"];

/// Runs a case with each input traced alone: its gradient must be bit-identical to the one of all inputs together, and
/// the others must cost no memory.
///
/// Returns what is wrong, one line each.
///
/// # Errors
/// When the inputs cannot be made, or the operation fails.
pub fn need(op: &Op, case: &Case, device: &Device) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    if !op.differentiable() {
        return Ok(faults);
    }
    let (all, inputs) = run(op, case, device, None)?;
    let wanted = |i: &usize| all.gradients[*i].is_some();
    let names: Vec<&str> = (0..all.gradients.len()).filter(wanted).map(|i| inputs.tensors.args[i].0).collect();
    if names.len() < 2 {
        return Ok(faults);
    }
    let bytes_of = |x: &Tensor| x.elements() * x.dtype().size();
    let total: usize = all.gradients.iter().flatten().map(bytes_of).sum();
    let peak_of_all = peak(op, case, device, None)?;
    for name in names {
        let (one, _) = run(op, case, device, Some(name))?;
        for (i, (alone, together)) in one.gradients.iter().zip(&all.gradients).enumerate() {
            let of = inputs.tensors.args[i].0;
            match (alone, together) {
                (Some(_), _) if of != name => faults.push(format!("d {of}: came though only `{name}` is traced")),
                (Some(a), Some(b)) if a.to_bytes()? != b.to_bytes()? => {
                    faults.push(format!("d {name}: other bits where the other inputs are not traced"));
                }
                (None, Some(_)) if of == name => {
                    faults.push(format!("d {name}: no gradient came where it alone is traced"));
                }
                _ => {}
            }
        }
        let own = one.gradients.iter().flatten().map(bytes_of).sum::<usize>();
        let (Some(peak_of_all), Some(peak)) = (peak_of_all, peak(op, case, device, Some(name))?) else { continue };
        let visible = total - own > VISIBLE && !SHARED.contains(&op.name());
        if peak > peak_of_all || visible && peak == peak_of_all {
            let others = total - own;
            faults.push(format!(
                "d {name}: {peak} bytes alone, {peak_of_all} with all gradients, of which the others are {others}"
            ));
        }
    }
    Ok(faults)
}

/// A run with all inputs traced, or one of them.
fn run(op: &Op, case: &Case, device: &Device, only: Option<&str>) -> Result<(Ran, Inputs)> {
    let inputs = Inputs::new(op, case, DType::F32, device)?;
    let shapes: Vec<Array> =
        (op.run)(&mut inputs.tensors.clone())?.iter().map(|y| Array::zeros(y.shape().to_vec())).collect();
    let seeds = inputs.seeds(&shapes)?;
    Ok((once(op, &inputs, &seeds, only)?, inputs))
}

/// The most memory that such a run holds on a CPU of its own; none on other devices, whose pools outlive a run.
fn peak(op: &Op, case: &Case, device: &Device, only: Option<&str>) -> Result<Option<usize>> {
    if !matches!(device, Device::Cpu(_)) {
        return Ok(None);
    }
    let device: Device = Cpu::builder().threads(1).open()?.into();
    run(op, case, &device, only)?;
    Ok(Some(device.peak_memory()))
}
