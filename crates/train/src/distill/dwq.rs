//! DWQ: the scales and biases of a quantized model, distilled from the model before quantization.

use super::run::{DistillObserver, run, targets, train_all_but};
use super::{DistillEvent, DistillSettings, Distilled};
use alluvium_core::{Device, Error, Result};
use alluvium_lm::formats::atomic::TempPath;
use alluvium_lm::{Change, LanguageModel, QuantConfig, Weight, convert};
use alluvium_ops::Packing;
use std::path::PathBuf;

/// The settings of [`dwq`]: those of a distillation whose student is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct DwqSettings {
    /// The data, the steps and the folders; `student` is not read.
    pub distill: DistillSettings,
    /// A quantized student. Without one the teacher is quantized in `packing`.
    pub quantized_model: Option<PathBuf>,
    /// The format of a student that is made of the teacher.
    pub packing: Packing,
    /// Computes the targets in `target_dir` and nothing else.
    pub targets_only: bool,
}

/// Improves a quantized model: trains the scales and biases of its affine modules below 8 bits, and its unquantized
/// parameters, so that its probabilities come near those of the teacher. Codes stay as they are. Parameters are
/// accumulated in f32, while the model computes with them as they are stored.
///
/// Returns `None` when the observer broke, or only targets were asked for.
///
/// # Source
/// `mlx_lm.quant.dwq`, whose losses these are from the same batches.
///
/// # Errors
/// When a file is missing or wrong, no module can be improved, the loss is not finite, or memory or disk run out.
pub fn dwq(settings: &DwqSettings, device: &Device, observe: &mut DistillObserver<'_>) -> Result<Option<Distilled>> {
    if settings.targets_only {
        if settings.distill.target_dir.is_none() {
            return Err(Error::value("dwq", "targets_only needs target_dir, the folder to write them to"));
        }
        return targets(&settings.distill, device, observe).map(|_| None);
    }
    alluvium_lm::refuse_existing(&settings.distill.output)?;
    // removed when the run ends
    let staging;
    let student = match &settings.quantized_model {
        Some(student) => student.clone(),
        None => {
            let _ = observe(DistillEvent::Preparing("quantizing the student"));
            let output = &settings.distill.output;
            staging = TempPath::folder(output).map_err(Error::io(output, "create"))?;
            let student = staging.path().join("student");
            let change = Change::Quantize(QuantConfig::of(settings.packing));
            convert(&settings.distill.teacher, &student, None, &change, &mut |_, _| ())?;
            student
        }
    };
    let settings = DistillSettings { student, ..settings.distill.clone() };
    run(&settings, device, observe, &choose)
}

/// Trains everything but codes and the modules of 8 bits or of floats.
fn choose(model: &mut dyn LanguageModel) -> Result<()> {
    let is_improved = |weight: &Weight| {
        weight.quantized().is_some_and(|q| matches!(q.packing, Packing::Affine { bits, .. } if bits < 8))
    };
    let mut improved = 0;
    model.weights_mut("", &mut |_, _, weight| improved += usize::from(is_improved(weight)));
    if improved == 0 {
        let why = "the student has no module in affine packing of less than 8 bits; nothing can be improved";
        return Err(Error::value("dwq", why));
    }
    train_all_but(model, &|weight| weight.quantized().is_some() && !is_improved(weight));
    Ok(())
}
