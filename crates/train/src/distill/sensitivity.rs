//! Sensitivities: how much each matrix of a model would gain from more bits, and the bits that follow.

use super::{DistillBatch, Distillation, TeacherLogits};
use crate::data::PackedBatch;
use crate::gradients;
use alluvium_core::{DType, Device, Error, Result, Tensor, tape};
use alluvium_lm::{Checkpointing, LanguageModel, ModuleKind, Parameter, QuantConfig, Role, Weight, freeze, load};
use alluvium_ops::{Over, Packing, cast, dequantize, mul, quantize, sub, sum};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// The settings of [`sensitivities`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SensitivitySettings {
    /// The packing of most matrices.
    pub low: Packing,
    /// The packing of the sensitive ones.
    pub high: Packing,
    /// Whether layers are computed again in the backward pass.
    pub grad_checkpoint: bool,
}

/// For each matrix that can be quantized, how much of the divergence from the plain model its `high` packing would take
/// away, per million elements, to first order: the gradient of the divergence of a model with all matrices in `low`
/// packing, times the difference of `low` and `high`.
///
/// `progress` gets the batches done and returns whether to go on; `None` where it did not.
///
/// # Source
/// `estimate_sensitivities` of `mlx_lm.dynamic_quant`.
///
/// # Errors
/// When the model is quantized already, no matrix can be quantized, or memory runs out.
pub fn sensitivities(
    folder: &Path,
    batches: &[PackedBatch],
    settings: &SensitivitySettings,
    device: &Device,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<BTreeMap<String, f64>>> {
    let mut teacher = load(folder, device)?.model;
    let mut student = load(folder, device)?.model;
    let mut result = Ok(());
    let mut names = Vec::new();
    freeze(student.as_mut(), &|_| true);
    student.weights_mut("", &mut |name, _, weight| {
        if result.is_ok() {
            match lowered(name, weight, settings) {
                Ok(Some(low)) => {
                    *weight = Weight::Dense(Parameter::new(low, Role::Trainable));
                    names.push(name.to_owned());
                }
                Ok(None) => {}
                Err(error) => result = Err(error),
            }
        }
    });
    result?;
    if names.is_empty() || batches.is_empty() {
        let why = format!("{} matrices can be quantized, {} batches came; expected both", names.len(), batches.len());
        return Err(Error::value("dynamic_quant", why));
    }
    // a plain tensor among a layer's fields is always trainable, and costs little
    let mut total: BTreeMap<String, Tensor> = BTreeMap::new();
    let checkpointing = if settings.grad_checkpoint { Checkpointing::Layers } else { Checkpointing::None };
    let objective = Distillation { temperature: 1.0, checkpointing, device: device.clone() };
    for (done, tokens) in batches.iter().enumerate() {
        let batch = DistillBatch { tokens: tokens.clone(), teacher: TeacherLogits::of(teacher.as_ref(), tokens)? };
        for (name, gradient) in gradients(student.as_mut(), &objective, &[batch])?.by_name {
            let sum = match total.remove(&name) {
                Some(sum) => tape::accumulate(sum, &gradient)?,
                None => gradient,
            };
            total.insert(name, sum);
        }
        if progress(done + 1).is_break() {
            return Ok(None);
        }
    }
    let mut found = BTreeMap::new();
    let mut result = Ok(());
    teacher.weights_mut("", &mut |name, _, weight| {
        if let (Some(gradient), true) = (total.get(&format!("{name}.weight")), result.is_ok()) {
            match alignment(weight, gradient, settings, batches.len()) {
                Ok(alignment) => drop(found.insert(name.to_owned(), alignment)),
                Err(error) => result = Err(error),
            }
        }
    });
    result.map(|()| Some(found))
}

/// The matrix after the `low` packing, in f32; `None` where it stays plain in every packing.
fn lowered(name: &str, weight: &Weight, settings: &SensitivitySettings) -> Result<Option<Tensor>> {
    let Ok(w) = weight.dense() else {
        let why = format!("`{name}` is quantized; give the plain model, or make it plain with convert --dequantize");
        return Err(Error::value("dynamic_quant", why));
    };
    check_order(w.elements(), w.dtype(), settings)?;
    match fits(w, settings) {
        true => packed_and_widened(w, settings.low).map(Some),
        false => Ok(None),
    }
}

fn fits(w: &Tensor, settings: &SensitivitySettings) -> bool {
    [settings.low, settings.high].iter().all(|packing| w.shape().last().is_multiple_of(packing.group()))
}

fn packed_and_widened(w: &Tensor, packing: Packing) -> Result<Tensor> {
    dequantize(&quantize(&w.detach(), packing)?.quantized(), DType::F32)
}

/// `Σ gradient · (low − high)` over a million elements.
fn alignment(weight: &Weight, gradient: &Tensor, settings: &SensitivitySettings, batches: usize) -> Result<f64> {
    let w = weight.dense()?;
    let gain = sub(&packed_and_widened(w, settings.low)?, &packed_and_widened(w, settings.high)?)?;
    let gradient = if gradient.dtype() == DType::F32 { gradient.clone() } else { cast(gradient, DType::F32)? };
    // each row's sum in f32, those of the rows in f64
    let rows = sum(&mul(&gradient, &gain)?, Over::Last)?.to_vec::<f32>()?;
    let total: f64 = rows.iter().map(|&x| f64::from(x)).sum();
    Ok(total / batches as f64 / (w.elements() as f64 / 1e6))
}

/// The packing of each matrix, such that a model in MLX's layout has at most `target` bits per weight.
///
/// All matrices begin with the `low` packing. Bits go, one step after the other, to the matrix that gains the most for
/// a bit, up to the `high` packing, as long as they fit. The divergence that is left falls by a factor of four with
/// each bit, so one sensitivity gives the gain of each step, and steps between `low` and `high` are taken where both are
/// affine with groups of one size. Where `high` is the next packing after `low` the result is that of mlx-lm, which
/// knows these two.
///
/// # Source
/// `estimate_threshold` of `mlx_lm.dynamic_quant`, which searches for the same threshold of two packings.
///
/// # Errors
/// When a matrix has no sensitivity, or no choice has at most as many bits.
pub fn choose_bits(
    model: &mut dyn LanguageModel,
    sensitivities: &BTreeMap<String, f64>,
    settings: &SensitivitySettings,
    target: f64,
) -> Result<QuantConfig> {
    let matrices = matrices(model, sensitivities, settings)?;
    for matrix in &matrices {
        check_order(matrix.elements, matrix.dtype, settings)?;
    }
    let (mut elements, mut bytes) = (0, 0);
    model.visit("", &mut |_, tensor| {
        elements += tensor.elements();
        bytes += tensor.elements() * tensor.dtype().size();
    });
    let plain: usize = matrices.iter().map(|matrix| 8 * matrix.elements * matrix.dtype.size()).sum();
    let mut bits = 8 * bytes - plain + matrices.iter().map(|matrix| matrix.bits(settings.low)).sum::<usize>();
    let lowest = bits as f64 / elements as f64;
    if lowest > target {
        let why = format!("the target is {target} bits per weight, {lowest:.3} is the least with the low bits");
        return Err(Error::value("dynamic_quant", why));
    }
    let ladder = ladder(settings);
    let mut steps: Vec<(f64, usize, usize)> = Vec::new();
    for (at, matrix) in matrices.iter().enumerate() {
        steps.extend(ladder.windows(2).enumerate().map(|(rung, pair)| (matrix.gain(pair, &ladder), at, rung)));
    }
    // a matrix gains less with each step, so its steps stay in order
    steps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.2.cmp(&b.2)).then(a.1.cmp(&b.1)));
    let mut rungs = vec![0; matrices.len()];
    for (_, at, rung) in steps {
        let more = matrices[at].bits(ladder[rung + 1]) - matrices[at].bits(ladder[rung]);
        // a step that does not fit leaves its matrix where it is; smaller ones may fit
        if rungs[at] == rung && (bits + more) as f64 <= target * elements as f64 {
            bits += more;
            rungs[at] += 1;
        }
    }
    let mut config = QuantConfig::of(settings.low);
    let chosen = matrices.into_iter().zip(rungs).map(|(matrix, rung)| (matrix.name, Some(ladder[rung])));
    config.modules.extend(chosen);
    // the first entry whose name a module contains counts, so a name goes before its own parts
    config.modules.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.0.cmp(&b.0)));
    Ok(config)
}

/// A matrix that can be quantized.
struct Matrix {
    name: String,
    elements: usize,
    dtype: DType,
    sensitivity: f64,
}

impl Matrix {
    /// Codes, scales and biases.
    fn bits(&self, packing: Packing) -> usize {
        packed_bits(self.elements, self.dtype, packing)
    }

    /// The divergence that a step takes away, for each bit of a weight.
    fn gain(&self, step: &[Packing], ladder: &[Packing]) -> f64 {
        let left = |packing: Packing| 0.25f64.powi(packing.bits() as i32);
        let (Some(&low), Some(&high), &[from, to]) = (ladder.first(), ladder.last(), step) else { return 0.0 };
        let share = match ladder.len() {
            2 => 1.0,
            _ => (left(from) - left(to)) / (left(low) - left(high)),
        };
        let more = self.bits(to) as f64 - self.bits(from) as f64;
        self.sensitivity * share * self.elements as f64 / more
    }
}

/// Codes, scales and biases of a matrix.
fn packed_bits(elements: usize, dtype: DType, packing: Packing) -> usize {
    16 * elements / packing.group() * dtype.size() + elements * packing.bits()
}

fn check_order(elements: usize, dtype: DType, settings: &SensitivitySettings) -> Result<()> {
    let [low, high] = [settings.low, settings.high].map(|packing| packed_bits(elements, dtype, packing));
    if high > low {
        return Ok(());
    }
    let SensitivitySettings { low, high, .. } = settings;
    let why = format!("the high packing has to take more bits than the low one: they are {high:?} and {low:?}");
    Err(Error::value("dynamic_quant", why))
}

/// The matrices that fit both packings, by name.
fn matrices(
    model: &mut dyn LanguageModel,
    sensitivities: &BTreeMap<String, f64>,
    settings: &SensitivitySettings,
) -> Result<Vec<Matrix>> {
    let (mut found, mut missing) = (Vec::new(), None);
    model.weights_mut("", &mut |name, _: ModuleKind, weight| {
        let Ok(w) = weight.dense() else { return };
        if !fits(w, settings) {
            return;
        }
        match sensitivities.get(name).filter(|x| x.is_finite()) {
            Some(&sensitivity) => {
                found.push(Matrix { name: name.to_owned(), elements: w.elements(), dtype: w.dtype(), sensitivity });
            }
            None => drop(missing.get_or_insert_with(|| name.to_owned())),
        }
    });
    if let Some(name) = missing {
        let why = format!("`{name}` has no finite sensitivity; were they measured on another model?");
        return Err(Error::value("dynamic_quant", why));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// The packings from `low` to `high`.
fn ladder(settings: &SensitivitySettings) -> Vec<Packing> {
    let SensitivitySettings { low, high, .. } = *settings;
    match (low, high) {
        (Packing::Affine { bits: from, group }, Packing::Affine { bits: to, group: other })
            if group == other && from < to =>
        {
            let bits = (from..=to).filter(|bits| *bits != 7);
            bits.map(|bits| Packing::Affine { bits, group }).collect()
        }
        _ => vec![low, high],
    }
}
