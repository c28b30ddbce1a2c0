//! The cost of gradients: an input that is not traced takes neither time nor memory.

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
/// Returns one line per fault.
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
    let of_all = cost(op, case, device, None)?;
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
        let alone = cost(op, case, device, Some(name))?;
        let visible = total - own > VISIBLE && !SHARED.contains(&op.name());
        if alone.peak > of_all.peak || visible && alone.peak == of_all.peak {
            let (peak, peak_of_all, others) = (alone.peak, of_all.peak, total - own);
            faults.push(format!(
                "d {name}: {peak} bytes alone, {peak_of_all} with all gradients, of which the others are {others}"
            ));
        }
        if alone.launches > of_all.launches {
            let (launches, of_all) = (alone.launches, of_all.launches);
            faults.push(format!("d {name}: {launches} launches alone, {of_all} with all gradients"));
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

/// The resources that a run uses.
struct Costs {
    /// The most bytes that it holds at once.
    peak: usize,
    /// Launches on a GPU.
    launches: u64,
}

/// The costs of a run: on a GPU those of this handle, otherwise of a CPU that nothing else uses.
fn cost(op: &Op, case: &Case, device: &Device, only: Option<&str>) -> Result<Costs> {
    let Device::Gpu(gpu) = device else {
        let device: Device = Cpu::builder().threads(1).open()?.into();
        run(op, case, &device, only)?;
        return Ok(Costs { peak: device.peak_memory(), launches: 0 });
    };
    device.reset_peak();
    let (before, launches) = (gpu.memory().in_use(), gpu.launches());
    run(op, case, device, only)?;
    Ok(Costs { peak: gpu.memory().peak() - before, launches: gpu.launches() - launches })
}
