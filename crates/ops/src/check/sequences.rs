//! Packed sequences: nothing of one sequence reaches another, not even NaN.

use super::inputs::Inputs;
use super::{Ran, once};
use crate::op::{Array, Case, Fill, Op};
use alluvium_core::{DType, Device, Result, Tensor};
use std::ops::Range;

/// The axis that the rows of a tensor belong to.
#[derive(Clone, Copy, PartialEq)]
enum Rows {
    /// One for each token of the packed row.
    Token,
    /// One for each sequence.
    Sequence,
    /// None: all sequences share the tensor.
    Shared,
}

/// Fills one packed sequence after the other with NaN, its arguments and the gradients of its results, and compares the
/// bits of results and gradients of all others with those of the plain run.
///
/// Gradients of arguments that all sequences share are sums over all of them and are not compared. A case without
/// packed sequences has no faults. Returns one line per fault.
///
/// # Errors
/// When the inputs cannot be made, or the operation fails.
pub fn isolation(op: &Op, case: &Case, device: &Device) -> Result<Vec<String>> {
    let offsets = op.fills.iter().find(|(_, fill)| matches!(fill, Fill::Offsets(_))).map(|(name, _)| *name);
    let Some(offsets) = offsets.filter(|name| !case.without.contains(name)) else { return Ok(Vec::new()) };
    let mut inputs = Inputs::new(op, case, DType::F32, device)?;
    let ends = &inputs.arrays[offsets];
    let sequences: Vec<Range<usize>> = (1..ends.data.len()).map(|i| ends.index(i - 1)..ends.index(i)).collect();
    let results = (op.run)(&mut inputs.tensors.clone())?;
    let shapes: Vec<Array> = results.iter().map(|y| Array::zeros(y.shape().to_vec())).collect();
    let seeds = inputs.seeds(&shapes)?;
    let kinds = Kinds::new(op, &shapes, &sequences);
    let plain = once(op, &inputs, &seeds, None)?;

    let (clean, mut faults) = (inputs.tensors.clone(), Vec::new());
    for at in 0..sequences.len() {
        for ((_, slot), (kind, (_, tensor))) in inputs.tensors.args.iter_mut().zip(kinds.args.iter().zip(&clean.args)) {
            *slot = tensor.as_ref().map(|x| poisoned(x, *kind, &sequences, at)).transpose()?;
        }
        let pairs = seeds.iter().zip(&kinds.results);
        let seeds = pairs.map(|(seed, kind)| poisoned(seed, *kind, &sequences, at)).collect::<Result<Vec<_>>>()?;
        let came = once(op, &inputs, &seeds, None)?;
        faults.extend(kinds.differences(op, [&plain, &came], &sequences, at)?);
    }
    Ok(faults)
}

/// The rows of arguments and results.
struct Kinds {
    args: Vec<Rows>,
    results: Vec<Rows>,
}

impl Kinds {
    fn new(op: &Op, results: &[Array], sequences: &[Range<usize>]) -> Self {
        let tokens = sequences.last().map_or(0, |last| last.end);
        let of_arg = |shape: &str| match shape.split_whitespace().next() {
            Some("B") => Rows::Token,
            Some("N") => Rows::Sequence,
            _ => Rows::Shared,
        };
        let of_result = |shape: &[usize]| match shape {
            [1, t, ..] if *t == tokens => Rows::Token,
            [n, ..] if *n == sequences.len() => Rows::Sequence,
            _ => Rows::Shared,
        };
        Kinds {
            args: op.contract.args.iter().map(|arg| of_arg(arg.shape())).collect(),
            results: results.iter().map(|y| of_result(&y.shape)).collect(),
        }
    }

    /// One line for each result and gradient of which rows of other sequences than `at` differ.
    fn differences(
        &self,
        op: &Op,
        [plain, came]: [&Ran; 2],
        sequences: &[Range<usize>],
        at: usize,
    ) -> Result<Vec<String>> {
        let results = op.results.iter().zip(plain.results.iter().zip(&came.results)).zip(&self.results);
        let results = results.map(|((name, (a, b)), kind)| ((*name).to_owned(), a, b, *kind));
        let gradients = op.contract.args.iter().zip(plain.gradients.iter().zip(&came.gradients)).zip(&self.args);
        let gradients = gradients
            .filter_map(|((arg, (a, b)), kind)| Some((format!("d {}", arg.name()), a.as_ref()?, b.as_ref()?, *kind)));
        let mut faults = Vec::new();
        for (name, a, b, kind) in results.chain(gradients).filter(|(.., kind)| *kind != Rows::Shared) {
            let (a, b) = (a.to_vec::<f32>()?, b.to_vec::<f32>()?);
            let (own, width) = span(kind, a.len(), sequences, at);
            let (own, others) = (own.start * width..own.end * width, |i: &usize| a[*i].to_bits() != b[*i].to_bits());
            if let Some(i) = (0..a.len()).filter(|i| !own.contains(i)).find(others) {
                let count = sequences.len();
                faults.push(format!("{name}: NaN in sequence {at} of {count} made element {i} {} of {}", b[i], a[i]));
            }
        }
        Ok(faults)
    }
}

/// The rows of a sequence, and the elements of a row.
fn span(kind: Rows, elements: usize, sequences: &[Range<usize>], at: usize) -> (Range<usize>, usize) {
    let tokens = sequences.last().map_or(1, |last| last.end);
    match kind {
        Rows::Token => (sequences[at].clone(), elements / tokens),
        Rows::Sequence => (at..at + 1, elements / sequences.len()),
        Rows::Shared => (0..0, 1),
    }
}

/// A tensor whose rows of one sequence are NaN.
fn poisoned(x: &Tensor, kind: Rows, sequences: &[Range<usize>], at: usize) -> Result<Tensor> {
    if kind == Rows::Shared || x.dtype() != DType::F32 {
        return Ok(x.clone());
    }
    let mut data = x.to_vec::<f32>()?;
    let (rows, width) = span(kind, data.len(), sequences, at);
    data[rows.start * width..rows.end * width].fill(f32::NAN);
    Tensor::from_slice(&data, x.shape(), x.device())
}
