//! The proof of an operation on a device. It reads the entry and is the same for every operation.
//!
//! A case passes if each result and gradient is within its tolerance of the f64 reference, a result of zeros would not
//! be, two runs are bit-identical, and half-precision storage adds no more than its rounding, to the gradients of weights
//! not even that. The gradient of the reference is compared with central differences.

mod compare;
mod differences;
mod errors;
mod inputs;
mod names;
mod need;
mod questions;
mod sequences;

pub use compare::{Gap, compare};
pub use differences::gradient_of_reference;
pub use errors::refusals;
pub use inputs::Inputs;
pub use names::unknown_names;
pub use need::need;
pub use questions::{MEDIUM, QUESTIONS, Question, SMALL, prove, work};
pub use sequences::isolation;

use crate::op::{Array, Case, Gradient, Op, Tolerance};
use alluvium_core::{DType, Device, Result, Tape, Tensor};

/// The result of the proof of a case.
#[derive(Debug)]
pub struct Report {
    /// The operation.
    pub op: &'static str,
    /// The case.
    pub case: &'static str,
    /// The storage of floating arguments.
    pub dtype: DType,
    /// The worst gap of all results and gradients.
    pub worst: Gap,
    /// One line per fault; empty if the case passes.
    pub faults: Vec<String>,
}

impl Report {
    /// Whether the case passed.
    pub fn passed(&self) -> bool {
        self.faults.is_empty()
    }
}

/// Whether a result of zeros must fail. With random sizes a gradient may truly be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// Every result and gradient that the case does not list as zero.
    MustFail,
    /// Not checked.
    MayPass,
}

/// Proves one case of an operation on a device, with floating arguments stored as `dtype`.
///
/// # Errors
/// When the inputs cannot be made; a failing operation is a fault in the report.
pub fn check(op: &Op, case: &Case, dtype: DType, device: &Device, zeros: Zeros) -> Result<Report> {
    let inputs = Inputs::new(op, case, dtype, device)?;
    let matrix_units = dtype == DType::BF16 && matches!(device, Device::Gpu(gpu) if gpu.runs_cuda_kernels());
    let faults = unknown_names(op, case);
    let mut proof = Proof { op, case, dtype, zeros, matrix_units, worst: Gap::default(), faults };
    if !proof.faults.is_empty() {
        // the case does not say what it tests
    } else if let Err(error) = proof.run(&inputs) {
        proof.faults.push(format!("it failed: {error}"));
    } else {
        let unread = inputs.tensors.options.unread();
        proof.faults.extend(unread.map(|name| format!("option `{name}` is not read by {}", op.name())));
    }
    let Proof { worst, faults, .. } = proof;
    Ok(Report { op: op.name(), case: case.name, dtype, worst, faults })
}

/// The bytes of all results and gradients of a case on a device. They do not depend on the number of threads.
///
/// # Errors
/// When the inputs cannot be made, or the operation fails.
pub fn bytes(op: &Op, case: &Case, dtype: DType, device: &Device) -> Result<Vec<Vec<u8>>> {
    let inputs = Inputs::new(op, case, dtype, device)?;
    let results = (op.run)(&mut inputs.tensors.clone())?;
    let shapes: Vec<Array> = results.iter().map(|y| Array::zeros(y.shape().to_vec())).collect();
    let Ran { results, gradients } = once(op, &inputs, &inputs.seeds(&shapes)?, None)?;
    results.iter().chain(gradients.iter().flatten()).map(Tensor::to_bytes).collect()
}

/// The smallest size that errors are divided by with random sizes, whose gradients may cancel.
const SMALLEST: f64 = 1e-2;

struct Proof<'a> {
    op: &'a Op,
    case: &'a Case,
    dtype: DType,
    zeros: Zeros,
    /// Whether matrix units may multiply intermediate results that are rounded to bf16.
    matrix_units: bool,
    worst: Gap,
    faults: Vec<String>,
}

/// The results of one run and, where there are any, the gradients by argument.
struct Ran {
    results: Vec<Tensor>,
    gradients: Vec<Option<Tensor>>,
}

impl Proof<'_> {
    fn run(&mut self, inputs: &Inputs) -> Result<()> {
        let want = (self.op.reference)(&inputs.arrays);
        let seeds = inputs.seeds(&want)?;
        let first = once(self.op, inputs, &seeds, None)?;
        let again = once(self.op, inputs, &seeds, None)?;
        self.same_bits(&first, &again, "the second time")?;
        if !self.op.differentiable() {
            let results = (self.op.run)(&mut inputs.copied()?)?;
            self.same_bits(&first, &Ran { results, gradients: Vec::new() }, "in memory that is not shared")?;
        }

        if first.results.len() != want.len() || self.op.results.len() < want.len() {
            let (came, named) = (first.results.len(), self.op.results.len());
            self.faults.push(format!("{came} results, the reference has {}, the entry names {named}", want.len()));
            return Ok(());
        }
        for ((name, got), want) in self.op.results.iter().zip(&first.results).zip(&want) {
            self.hold(name, got, want, self.tolerance(got.dtype()))?;
        }
        if let Gradient::Of(gradient) = self.op.gradient {
            // the reference starts from the values that the tape started from
            let rounded = |(seed, y): (&Tensor, &Tensor)| array(&inputs.like(seed, y)?);
            let seeds = seeds.iter().zip(&first.results).map(rounded).collect::<Result<Vec<_>>>()?;
            let want = gradient(&inputs.arrays, &seeds);
            if want.len() != self.op.contract.args.len() {
                self.faults.push(format!("the reference has {} gradients, one for each argument expected", want.len()));
            }
            for ((arg, got), want) in self.op.contract.args.iter().zip(&first.gradients).zip(&want) {
                let name = format!("d {}", arg.name());
                match (got, want) {
                    (Some(got), Some(want)) => {
                        let stored = inputs.tensors[arg.name()].dtype();
                        if got.dtype() != DType::F32 {
                            self.faults.push(format!("{name}: it is {}, expected f32", got.dtype()));
                        }
                        // sums of a weight's gradient begin at the stored arguments and are rounded nowhere
                        let exact = arg.is_weight() && stored != DType::F32;
                        let tolerance = if exact { self.exact() } else { self.tolerance(got.dtype()) };
                        self.hold(&name, got, want, tolerance)?;
                    }
                    (None, None) => {}
                    (None, Some(_)) => self.faults.push(format!("{name}: no gradient came")),
                    (Some(_), None) => self.faults.push(format!("{name}: a gradient came, the reference has none")),
                }
            }
        }
        Ok(())
    }

    fn same_bits(&mut self, first: &Ran, again: &Ran, when: &str) -> Result<()> {
        let pairs = first.results.iter().zip(&again.results);
        let gradients = first.gradients.iter().flatten().zip(again.gradients.iter().flatten());
        for (a, b) in pairs.chain(gradients) {
            if a.to_bytes()? != b.to_bytes()? {
                self.faults.push(format!("{a:?}: the same inputs gave other bits {when}"));
            }
        }
        Ok(())
    }

    /// Compares a tensor with its reference, and checks that a tensor of zeros would fail.
    fn hold(&mut self, name: &str, got: &Tensor, want: &Array, tolerance: Tolerance) -> Result<()> {
        if got.shape()[..] != want.shape[..] {
            self.faults.push(format!("{name}: {} came, the reference is {:?}", got.shape(), want.shape));
            return Ok(());
        }
        let floor = if self.zeros == Zeros::MayPass { SMALLEST } else { 0.0 };
        let gap = compare(&inputs::values(got)?, &want.data, floor);
        self.worst = self.worst.worse(gap);
        if !gap.within(tolerance) {
            self.faults.push(format!("{name}: {gap}, allowed {:.1e} and {:.1e}", tolerance.relative, tolerance.worst));
        }
        // random sizes have many more elements, of which some cancel by chance
        let each = self.zeros == Zeros::MustFail && self.case.each.contains(&name);
        if each && got.dtype() == DType::F32 && gap.each > Tolerance::EACH {
            let each = gap.each;
            self.faults
                .push(format!("{name}: an element is {each:.1e} of itself away, allowed {:.0e}", Tolerance::EACH));
        }
        if self.zeros == Zeros::MayPass {
            return Ok(());
        }
        if self.case.zeros.contains(&name) {
            if want.data.iter().any(|&x| x != 0.0) {
                self.faults.push(format!("{name}: listed as zero, but it is not"));
            }
        } else if compare(&vec![0.0; want.data.len()], &want.data, 0.0).within(tolerance) {
            self.faults.push(format!("{name}: a result of zeros would pass; choose other inputs"));
        }
        Ok(())
    }

    /// Half precision adds the rounding of the result, and of what was stored on the way to it, to what f32 is allowed.
    fn tolerance(&self, stored: DType) -> Tolerance {
        let Tolerance { relative, worst, matrix_units } = self.exact();
        let rounding = |dtype: DType| if dtype == DType::F32 { 0.0 } else { dtype.epsilon() };
        let half = rounding(stored).max(rounding(self.dtype));
        Tolerance { relative: relative + half, worst: worst + 8.0 * half, matrix_units }
    }

    /// What is allowed where nothing is rounded for storage.
    fn exact(&self) -> Tolerance {
        let Tolerance { relative, worst, matrix_units } = self.op.tolerance;
        let units = if self.matrix_units { matrix_units } else { 0.0 };
        Tolerance { relative: relative + units, worst: worst + 8.0 * units, matrix_units }
    }
}

/// Runs an operation and its gradient, with all floating arguments traced or `only` one.
fn once(op: &Op, inputs: &Inputs, seeds: &[Tensor], only: Option<&str>) -> Result<Ran> {
    if !op.differentiable() {
        // the inputs hold every argument, too: none is overwritten
        return Ok(Ran { results: (op.run)(&mut inputs.tensors.clone())?, gradients: Vec::new() });
    }
    let tape = Tape::new();
    let mut given = inputs.watched(&tape, only);
    let results = (op.run)(&mut given)?;
    let mut pairs = Vec::new();
    for (y, seed) in results.iter().zip(seeds).filter(|(y, _)| y.is_traced()) {
        pairs.push((y, inputs.like(seed, y)?));
    }
    let pairs: Vec<(&Tensor, &Tensor)> = pairs.iter().map(|(y, dy)| (*y, dy)).collect();
    let mut grads = tape.backward(&pairs)?;
    let gradients = given.args.iter().map(|(_, x)| x.as_ref().and_then(|x| grads.take(x))).collect();
    Ok(Ran { results: results.iter().map(Tensor::detach).collect(), gradients })
}

fn array(x: &Tensor) -> Result<Array> {
    Ok(Array::new(x.shape().to_vec(), inputs::values(x)?))
}
