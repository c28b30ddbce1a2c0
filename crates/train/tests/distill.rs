//! Distillation from files: DWQ, a plain student, targets on disk, sensitivities, and input that is wrong.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::{DType, Device, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_lm::{Change, LanguageModel, Tokenizer, convert, load};
use alluvium_ops::Packing;
use alluvium_train::Objective;
use alluvium_train::data::{PackedBatch, SampleOrder, Samples, read_calibration};
use alluvium_train::distill::{
    DistillBatch, DistillEvent, DistillSettings, Distillation, DwqSettings, SensitivitySettings, TeacherLogits,
    TopLogits, choose_bits, distill, dwq, sensitivities,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const TEACHER: &str = "qwen3_5-f32";
const CONTINUE: ControlFlow<()> = ControlFlow::Continue(());

fn fixture(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(model)
}

/// Texts of different lengths.
fn texts(folder: &Path) -> PathBuf {
    let words: Vec<&str> =
        "the gated delta rule keeps a small state and updates it at every step of the text".split(' ').collect();
    let text = |i: usize| (0..6 + i % 5).map(|j| words[(3 * i + j) % words.len()]).collect::<Vec<_>>().join(" ");
    let lines = (0..24).map(|i| format!("{}\n", serde_json::json!({"text": text(i)}))).collect::<String>();
    let path = folder.join("texts.jsonl");
    fs::write(&path, lines).unwrap();
    path
}

fn settings(folder: &Path, student: &str) -> DistillSettings {
    DistillSettings {
        teacher: fixture(TEACHER),
        student: fixture(student),
        output: folder.join("out"),
        data: texts(folder),
        num_samples: 20,
        max_seq_length: 40,
        batch_size: 2,
        epochs: 2,
        learning_rate: 2e-3,
        temperature: 2.0,
        grad_checkpoint: false,
        target_dir: None,
        sample_order: SampleOrder::Random,
        seed: 1,
    }
}

fn two_bits(distill: DistillSettings) -> DwqSettings {
    let packing = Packing::Affine { bits: 2, group: 32 };
    DwqSettings { distill, quantized_model: None, packing, targets_only: false }
}

/// The losses of all steps, then those of the validations.
fn losses(settings: &DwqSettings) -> Result<(Vec<f64>, Vec<f64>), String> {
    let (mut steps, mut validations) = (Vec::new(), Vec::new());
    let result = dwq(settings, &Device::cpu(), &mut |event| {
        match event {
            DistillEvent::Stepped { loss, .. } => steps.push(loss),
            DistillEvent::Validated { loss, .. } => validations.push(loss),
            _ => {}
        }
        CONTINUE
    });
    result.map(|_| (steps, validations)).map_err(|error| error.to_string())
}

fn tensors(folder: &Path) -> BTreeMap<String, Tensor> {
    let file = safetensors::read(folder.join("model.safetensors")).unwrap();
    file.names().map(|name| (name.to_owned(), file.tensor(name, &Device::cpu()).unwrap())).collect()
}

fn left_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn two_bits_come_nearer_to_the_teacher_and_codes_stay() {
    let folder = tempfile::tempdir().unwrap();
    let settings = two_bits(settings(folder.path(), TEACHER));
    let (steps, validations) = losses(&settings).unwrap();
    assert_eq!((steps.len(), validations.len()), (20, 2));
    let [before, after] = [validations[0], validations[1]];
    assert!(after < 0.7 * before, "{before} became {after}");
    // nothing is left of the student that was quantized on the way
    assert_eq!(left_in(folder.path()), ["out", "texts.jsonl"]);

    let plain = folder.path().join("plain");
    let change = Change::Quantize(alluvium_lm::QuantConfig::of(settings.packing));
    convert(&fixture(TEACHER), &plain, None, &change, &mut |_, _| ()).unwrap();
    let (plain, trained) = (tensors(&plain), tensors(&settings.distill.output));
    assert!(plain.keys().eq(trained.keys()));
    let mut moved = 0;
    for (name, tensor) in &plain {
        let new = &trained[name];
        assert_eq!((tensor.dtype(), tensor.shape()), (new.dtype(), new.shape()), "{name}");
        let same = tensor.to_bytes().unwrap() == new.to_bytes().unwrap();
        assert!(same || tensor.dtype() != DType::U32, "{name}: codes have changed");
        moved += usize::from(!same && (name.ends_with(".scales") || name.ends_with(".biases")));
    }
    assert!(moved > 20, "{moved} scales and biases moved");
    // what was written gives the loss that was measured
    let device = Device::cpu();
    let student = load(&settings.distill.output, &device).unwrap();
    let tokenizer = student.tokenizer.unwrap();
    let loss = |model: &(dyn LanguageModel + 'static)| {
        let tokens = batch(&tokenizer, &settings.distill.data);
        let teacher = load(&fixture(TEACHER), &device).unwrap().model;
        let teacher = TeacherLogits::of(teacher.as_ref(), &tokens).unwrap();
        let objective =
            Distillation { temperature: 2.0, checkpointing: alluvium_lm::Checkpointing::None, device: device.clone() };
        objective.loss(model, &DistillBatch { tokens, teacher }).unwrap().item().unwrap()
    };
    let other = load(&folder.path().join("plain"), &device).unwrap();
    assert!(loss(student.model.as_ref()) < 0.8 * loss(other.model.as_ref()));
}

fn batch(tokenizer: &Tokenizer, path: &Path) -> PackedBatch {
    let samples = read_calibration(path, tokenizer, 40).unwrap();
    Samples { samples: samples.into(), ..Samples::default() }.batches(6, 1).remove(0)
}

#[test]
fn all_of_the_largest_logits_give_the_loss_of_all_logits_and_fewer_another() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::cpu();
    let model = |name: &str| load(&fixture(name), &device).unwrap();
    let (teacher, student) = (model(TEACHER), model("qwen3-f32"));
    let tokens = batch(teacher.tokenizer.as_ref().unwrap(), &texts(folder.path()));
    let all = TeacherLogits::of(teacher.model.as_ref(), &tokens).unwrap();
    let objective =
        Distillation { temperature: 2.0, checkpointing: alluvium_lm::Checkpointing::None, device: device.clone() };
    let loss = |teacher: TeacherLogits| {
        let batch = DistillBatch { tokens: tokens.clone(), teacher };
        objective.loss(student.model.as_ref(), &batch).unwrap().item().unwrap()
    };
    let largest = |count| TeacherLogits::Largest(TopLogits::of(&all, count).unwrap());
    let (whole, every, few) = (loss(all.clone()), loss(largest(1024)), loss(largest(8)));
    assert!(whole > 0.1 && (whole - every).abs() < 1e-5 * whole, "{whole} {every}");
    assert!((whole - few).abs() > 1e-2 * whole, "{whole} {few}");
    // the divergence of a model from itself
    let batch = DistillBatch { tokens: tokens.clone(), teacher: largest(8) };
    assert!(objective.loss(teacher.model.as_ref(), &batch).unwrap().item().unwrap().abs() < 1e-5);
}

#[test]
fn targets_on_disk_give_the_losses_of_a_teacher_in_memory_and_are_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = two_bits(DistillSettings { epochs: 1, ..settings(folder.path(), TEACHER) });
    let (in_memory, _) = losses(&settings).unwrap();
    fs::remove_dir_all(&settings.distill.output).unwrap();

    let targets = folder.path().join("targets");
    settings.distill.target_dir = Some(targets.clone());
    settings.targets_only = true;
    assert_eq!(losses(&settings).unwrap(), (vec![], vec![]));
    assert_eq!((left_in(&targets), left_in(&targets.join("train")).len()), (vec!["train".into(), "valid".into()], 10));
    assert!(!settings.distill.output.exists());
    settings.targets_only = false;
    let written = fs::metadata(targets.join("train/0000000003.safetensors")).unwrap().modified().unwrap();
    let (from_disk, _) = losses(&settings).unwrap();
    assert_eq!(fs::metadata(targets.join("train/0000000003.safetensors")).unwrap().modified().unwrap(), written);
    // logits on disk are f16, less the largest
    let far = in_memory.iter().zip(&from_disk).map(|(a, b)| (a - b).abs() / a).fold(0.0, f64::max);
    assert!(far > 0.0 && far < 1e-2, "{far}: {in_memory:?} {from_disk:?}");

    fs::remove_dir_all(&settings.distill.output).unwrap();
    settings.distill.batch_size = 4;
    let error = losses(&settings).unwrap_err();
    assert!(error.contains("targets are those of other batches"), "{error}");
}

#[test]
fn a_smaller_student_learns_and_a_run_that_is_stopped_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let settings = DistillSettings { epochs: 3, ..settings(folder.path(), "qwen3-f32") };
    let mut seen = 0;
    let stopped = distill(&settings, &Device::cpu(), &mut |event| {
        seen += usize::from(matches!(event, DistillEvent::Stepped { .. }));
        if seen == 3 { ControlFlow::Break(()) } else { CONTINUE }
    });
    assert!(stopped.unwrap().is_none());
    assert_eq!(left_in(folder.path()), ["texts.jsonl"]);
    let run = || distill(&settings, &Device::cpu(), &mut |_| CONTINUE).unwrap().unwrap();
    let distilled = run();
    let [before, after] = distilled.validation;
    assert!(after < 0.8 * before, "{before} became {after}");
    let model = load(&settings.output, &Device::cpu()).unwrap();
    assert_eq!(model.model.cache_shapes().len(), 2);
    // and the same again
    let bytes = fs::read(settings.output.join("model.safetensors")).unwrap();
    fs::remove_dir_all(&settings.output).unwrap();
    run();
    assert!(fs::read(settings.output.join("model.safetensors")).unwrap() == bytes);
}

#[test]
fn wrong_settings_and_students_are_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let plain = settings(folder.path(), TEACHER);
    let refused = |settings: DwqSettings, words: &str| {
        let error = losses(&settings).unwrap_err();
        assert!(error.contains(words), "{error}, expected {words}");
    };
    let with_student = |name: &str| DwqSettings { quantized_model: Some(fixture(name)), ..two_bits(plain.clone()) };
    refused(with_student(TEACHER), "dwq: the student has no module in affine packing of less than 8 bits");
    refused(with_student("qwen3_next-mxfp4"), "no module in affine packing");
    let rate = DistillSettings { learning_rate: f32::NAN, ..plain.clone() };
    refused(two_bits(rate), "learning_rate is NaN, expected a finite value above 0");
    refused(two_bits(DistillSettings { temperature: 0.0, ..plain.clone() }), "temperature is 0");
    refused(two_bits(DistillSettings { batch_size: 0, ..plain.clone() }), "batch_size is 0, expected 1 or more");
    refused(DwqSettings { targets_only: true, ..two_bits(plain.clone()) }, "targets_only needs target_dir");
    let one = folder.path().join("one.jsonl");
    fs::write(&one, "{\"text\": \"the state\"}\n").unwrap();
    refused(two_bits(DistillSettings { data: one, ..plain.clone() }), "it has fewer than 2 samples");
    let error =
        distill(&DistillSettings { student: fixture("qwen3_5-q4g64"), ..plain.clone() }, &Device::cpu(), &mut |_| {
            CONTINUE
        });
    assert!(error.unwrap_err().to_string().contains("of the student is quantized; use dwq"));
    fs::remove_file(folder.path().join("one.jsonl")).unwrap();
    assert_eq!(left_in(folder.path()), ["texts.jsonl"]);
    fs::create_dir(&plain.output).unwrap();
    refused(two_bits(plain.clone()), "it exists already");
}

#[test]
fn sensitivities_choose_bits_up_to_a_size() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::cpu();
    let mut model = load(&fixture(TEACHER), &device).unwrap();
    let tokens = [batch(model.tokenizer.as_ref().unwrap(), &texts(folder.path()))];
    let [low, high] = [2, 6].map(|bits| Packing::Affine { bits, group: 32 });
    let settings = SensitivitySettings { low, high, grad_checkpoint: false };
    let measure = || sensitivities(&fixture(TEACHER), &tokens, &settings, &device, &mut |_| CONTINUE);
    let found = measure().unwrap().unwrap();
    assert!(found.len() > 20 && found.values().any(|&x| x > 0.0), "{found:?}");
    assert_eq!(measure().unwrap().unwrap(), found);
    let stopped = sensitivities(&fixture(TEACHER), &tokens, &settings, &device, &mut |_| ControlFlow::Break(()));
    assert!(stopped.unwrap().is_none());
    let mut sizes = BTreeMap::new();
    model.model.weights_mut("", &mut |name, _, weight| {
        sizes.insert(name.to_owned(), weight.shape().elements());
    });

    // scales and biases are f32 here: 2 more bits a weight
    let mut bits = Vec::new();
    let mut used = BTreeSet::new();
    for (at, target) in [5.0, 6.0, 7.5].into_iter().enumerate() {
        let config = choose_bits(model.model.as_mut(), &found, &settings, target).unwrap();
        let of = |name: &String| config.modules.iter().find(|(n, _)| n == name).unwrap().1.unwrap().bits();
        used.extend(found.keys().map(of));
        // of two matrices of one size the more sensitive one has no fewer bits
        for (a, b) in found.keys().flat_map(|a| found.keys().map(move |b| (a, b))) {
            let size = |name: &String| sizes[name];
            assert!(size(a) != size(b) || found[a] <= found[b] || of(a) >= of(b), "{target}: {a}, {b}");
        }
        let out = folder.path().join(format!("out{at}"));
        let converted = convert(&fixture(TEACHER), &out, None, &Change::Quantize(config), &mut |_, _| ()).unwrap();
        assert!(converted.bits_per_weight() <= target, "{target}: {}", converted.bits_per_weight());
        bits.push(converted.bits_per_weight());
    }
    assert_eq!(used.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
    assert!(bits[0] < bits[1] && bits[1] < bits[2], "{bits:?}");
    let error = choose_bits(model.model.as_mut(), &found, &settings, 3.0).unwrap_err().to_string();
    assert!(error.contains("the target is 3 bits per weight"), "{error}");
    let swapped = SensitivitySettings { low: high, high: low, ..settings };
    let error = choose_bits(model.model.as_mut(), &found, &swapped, 7.0).unwrap_err().to_string();
    assert!(error.contains("has to take more bits than the low one"), "{error}");
    let other = BTreeMap::from([("lm_head".to_owned(), 1.0)]);
    let error = choose_bits(model.model.as_mut(), &other, &settings, 6.0).unwrap_err().to_string();
    assert!(error.contains("has no finite sensitivity"), "{error}");
    let error = sensitivities(&fixture("qwen3_5-q4g64"), &tokens, &settings, &device, &mut |_| CONTINUE);
    assert!(error.unwrap_err().to_string().contains("is quantized; give the plain model"));
}
