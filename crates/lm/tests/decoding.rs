//! Decoding on a GPU: launches of one token, and projections that lie one after the other in memory.
#![allow(clippy::unwrap_used, clippy::panic)]

use alluvium_core::gpu::Gpu;
use alluvium_core::{Device, Tensor};
use alluvium_lm::{LanguageModel, LoadOptions, load_with};
use std::path::PathBuf;

fn model(name: &str, options: &LoadOptions) -> Box<dyn LanguageModel> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/models").join(name);
    load_with(&folder, options).unwrap().model
}

/// The logits after each of the tokens that follow a prompt, for two sequences.
fn logits(model: &dyn LanguageModel, device: &Device) -> Vec<Vec<f32>> {
    let mut cache = model.cache(2).unwrap();
    let mut step = |ids: &[u32], shape: [usize; 2]| {
        let hidden = model.forward_cached(&Tensor::from_slice(ids, shape, device).unwrap(), &mut cache).unwrap();
        model.logits(&hidden).unwrap().to_floats().unwrap()
    };
    let mut all = vec![step(&[3, 1, 4, 1, 5, 9], [2, 3])];
    all.extend([[2, 6], [5, 3], [5, 8]].map(|ids| step(&ids, [2, 1])));
    all
}

#[test]
fn joined_projections_give_the_logits_of_separate_ones() {
    let Some(gpu) = Gpu::builder().poison().open_for_test().unwrap() else { return };
    let device = Device::from(gpu);
    for name in ["qwen3_5-f32", "qwen3_next-q4g64", "llama-q4g64", "qwen3_5-mxfp4"] {
        let options = LoadOptions::new(&device);
        let separate = logits(model(name, &options).as_ref(), &device);
        let joined = logits(model(name, &options.for_generation()).as_ref(), &device);
        for (separate, joined) in separate.iter().zip(&joined) {
            let largest = separate.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for (a, b) in separate.iter().zip(joined) {
                // logits are sums of thousands of products, whose order may differ
                assert!((a - b).abs() <= 1e-5 * largest, "{name}: {a} and {b}");
            }
        }
    }
}

#[test]
fn a_token_takes_few_launches() {
    let Some(gpu) = Gpu::builder().open_for_test().unwrap() else { return };
    let device = Device::from(gpu.clone());
    // three linear layers of eight launches and one of attention of thirteen, the embedding and the last norm; mixtures of
    // experts have more
    for (name, most) in [("qwen3_5-f32", 39), ("qwen3_next-q4g64", 78), ("llama-q4g64", 30)] {
        let model = model(name, &LoadOptions::new(&device).for_generation());
        let mut cache = model.cache(1).unwrap();
        let mut launches = |ids: &[u32]| {
            let ids = Tensor::from_slice(ids, [1, ids.len()], &device).unwrap();
            let before = gpu.launches();
            model.forward_cached(&ids, &mut cache).unwrap();
            gpu.launches() - before
        };
        launches(&[1, 2, 3]);
        let found = launches(&[4]);
        assert!(found <= most, "{name}: {found} launches for a token, expected {most} or fewer");
    }
}
