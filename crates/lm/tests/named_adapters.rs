//! Several adapters of one model in one process, selected for each request.

#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::Device;
use alluvium_core::cpu::Cpu;
use alluvium_lm::adapter::Adapter;
use alluvium_lm::{AdaptedModels, FineTuneType, LanguageModel, LoraParameters, Session, load};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

fn base(name: &str, device: &Device) -> Box<dyn LanguageModel> {
    load(&fixture(name), device).unwrap().model
}

/// The same updates with another factor: an adapter that answers differently.
fn scaled(folder: &str, scale: f32, device: &Device) -> Adapter {
    let parameters = LoraParameters { scale, ..LoraParameters::default() };
    let file = fixture(folder).join("adapters.safetensors");
    Adapter::read_file(&file, FineTuneType::Lora, Some(&parameters), device).unwrap()
}

fn logits(session: &Session<'_>) -> Vec<f32> {
    session.logits().unwrap().to_vec().unwrap()
}

const MODEL: &str = "models/qwen3_next-f32";
const LORA: &str = "train/lora-qwen3_next-f32";

#[test]
fn sequences_of_several_adapters_advance_side_by_side_as_each_alone() {
    let device = Device::cpu();
    let mut models = AdaptedModels::new(base(MODEL, &device).into());
    models.insert("near", &scaled(LORA, 4.0, &device)).unwrap();
    models.insert("far", &scaled(LORA, -40.0, &device)).unwrap();
    let names = [None, Some("near"), Some("far")];
    let prompt: Vec<u32> = (1..30).collect();
    let mut sessions = names.map(|name| Session::new(models.get(name).unwrap()).unwrap());
    // a model with one adapter alone, attached in its place
    let mut alone = [None, Some(4.0), Some(-40.0)].map(|factor| {
        let mut model = base(MODEL, &device);
        if let Some(factor) = factor {
            scaled(LORA, factor, &device).attach(model.as_mut()).unwrap();
        }
        Session::new(Arc::<dyn LanguageModel>::from(model)).unwrap()
    });
    for session in sessions.iter_mut().chain(&mut alone) {
        session.prefill(&prompt).unwrap();
    }
    for token in 40..46 {
        for (session, alone) in sessions.iter_mut().zip(&mut alone) {
            session.step(token).unwrap();
            alone.step(token).unwrap();
            assert_eq!(logits(session), logits(alone));
        }
        let [plain, near, far] = sessions.each_ref().map(logits);
        let gap = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(gap(&plain, &near) > 1e-3 && gap(&near, &far) > 1e-2, "the adapters change nothing");
    }
}

#[test]
fn an_adapter_costs_the_memory_of_its_tensors_and_gives_it_back() {
    // other tests use the shared one
    let device: Device = Cpu::builder().threads(1).open().unwrap().into();
    let model: Arc<dyn LanguageModel> = base("models/qwen3_5-q4g64", &device).into();
    let mut models = AdaptedModels::new(model);
    let adapter = {
        let mut other = base("models/qwen3_5-q4g64", &device);
        alluvium_lm::freeze(other.as_mut(), &|_| true);
        let parameters = LoraParameters { rank: 2, ..LoraParameters::default() };
        alluvium_lm::attach_low_rank(other.as_mut(), FineTuneType::Dora, &parameters, 0, 3).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = Vec::new();
        alluvium_lm::visit_trainable(other.as_ref(), &mut |name, tensor| tensors.push((name, tensor.clone())));
        let named: Vec<_> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        let file = folder.path().join("adapters.safetensors");
        alluvium_lm::formats::safetensors::write(&file, &named, &[]).unwrap();
        Adapter::read_file(&file, FineTuneType::Dora, Some(&parameters), &device).unwrap()
    };
    let before = device.memory_in_use();
    for name in ["a", "b", "c", "d"] {
        models.insert(name, &adapter).unwrap();
    }
    // the squared lengths of rows, which DoRA keeps beside tensors that all four share
    let each = (device.memory_in_use() - before) / 4;
    let mut whole = 0;
    models.get(None).unwrap().visit("", &mut |_, tensor| whole += tensor.elements() * tensor.dtype().size());
    assert!(each * 10 < whole, "an adapter costs {each} bytes, the model has {whole}");
    assert!(["a", "b", "c", "d"].iter().all(|name| models.remove(name)));
    assert_eq!(device.memory_in_use(), before);
}

#[test]
fn names_and_adapters_that_do_not_fit_are_refused_by_name() {
    let device = Device::cpu();
    let mut models = AdaptedModels::new(base(MODEL, &device).into());
    let missing = |models: &AdaptedModels, name| match models.get(Some(name)) {
        Ok(_) => panic!("`{name}` was found"),
        Err(error) => error.to_string(),
    };
    assert_eq!(missing(&models, "poet"), "adapter: there is no adapter `poet`; there are: none");
    let good = scaled(LORA, 4.0, &device);
    models.insert("poet", &good).unwrap();
    models.insert("clerk", &good).unwrap();
    assert_eq!(missing(&models, "cook"), "adapter: there is no adapter `cook`; there are: clerk, poet");
    let twice = models.insert("poet", &good).unwrap_err().to_string();
    assert_eq!(twice, "adapter: there is an adapter `poet` already; remove it or take another name");
    let unnamed = models.insert("", &good).unwrap_err().to_string();
    assert_eq!(unnamed, "adapter: its name is empty, expected one that requests can give");
    let foreign = Adapter::read(&fixture("train/dora-qwen3_5-f32"), &device).unwrap();
    let foreign = models.insert("foreign", &foreign).unwrap_err().to_string();
    assert!(foreign.contains("made for another model"), "{foreign}");
    assert_eq!(models.names().collect::<Vec<_>>(), ["clerk", "poet"]);
    assert!(models.remove("poet") && !models.remove("poet"));
}

#[test]
fn parameters_of_full_fine_tuning_leave_the_base_as_it_is() {
    let device = Device::cpu();
    let mut models = AdaptedModels::new(base("models/qwen3_5-f32", &device).into());
    let run = |models: &AdaptedModels, name: Option<&str>| {
        let mut session = Session::new(models.get(name).unwrap()).unwrap();
        session.prefill(&[5, 6, 7, 8]).unwrap();
        logits(&session)
    };
    let before = run(&models, None);
    let full = Adapter::read(&fixture("train/full-qwen3_5-f32"), &device).unwrap();
    models.insert("full", &full).unwrap();
    assert_ne!(run(&models, Some("full")), before);
    assert_eq!(run(&models, None), before);
}
