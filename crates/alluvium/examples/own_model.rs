//! A model of one's own: defined, trained, saved and loaded again.
//!
//! `cargo run --release -p alluvium --example own_model`

use alluvium::lm::nn::{Embedding, GatedDeltaNet, GatedDeltaNetConfig, RmsNorm};
use alluvium::lm::{
    Batch, Cache, CacheShape, Checkpointing, Config, GenerateOptions, LanguageModel, LoadOptions, ModelType,
    RandomInit, Weight,
};
use alluvium::lm::{VarBuilder, generate, load_with, params, save_with_config};
use alluvium::train::{NextToken, Optimizer, OptimizerConfig, StepOptions, data::PackedBatch, train_step};
use alluvium::{Device, Result, Tensor, ops::add};

// the names of the fields are the names of the tensors in a checkpoint
struct Tiny {
    embed: Embedding,
    mixer: GatedDeltaNet,
    norm: RmsNorm,
}
params!(Tiny { embed, mixer, norm });

fn build(config: &Config, mut b: VarBuilder) -> Result<Box<dyn LanguageModel>> {
    let width = config.integer("hidden_size")?;
    Ok(Box::new(Tiny {
        embed: Embedding::build(b.pp("embed"), [config.vocab_size()?, width], 0.02)?,
        mixer: GatedDeltaNet::build(b.pp("mixer"), &GatedDeltaNetConfig::new(width))?,
        norm: RmsNorm::build(b.pp("norm"), width, 1e-6)?,
    }))
}

impl LanguageModel for Tiny {
    fn forward(&self, batch: &Batch, _: Checkpointing) -> Result<Tensor> {
        let x = self.embed.forward(batch.ids)?;
        self.norm.forward(&add(&x, &self.mixer.forward(&x, batch.cu_seqlens)?)?)
    }

    fn forward_cached(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let x = self.embed.forward(ids)?;
        let mixed = self.mixer.step(&x, cache.layers[0].delta()?)?;
        cache.advance(ids.shape()[1]);
        self.norm.forward(&add(&x, &mixed)?)
    }

    fn lm_head(&self) -> &Weight {
        self.embed.weight() // tied
    }

    fn cache_shapes(&self) -> Vec<CacheShape> {
        vec![self.mixer.cache_shape()]
    }
}

fn main() -> Result<()> {
    let device = Device::cpu();
    let config = Config::of_type("tiny").with("vocab_size", 256).with("hidden_size", 64);
    let mut model = build(&config, VarBuilder::new(&mut RandomInit { seed: 0, device: device.clone() }))?;

    // learn to count: token n is followed by n + 1
    let ids: Vec<u32> = (0..64).collect();
    let mut batch = PackedBatch::default();
    batch.push(&ids[..63], &ids[1..]);
    let (objective, mut optimizer) = (NextToken::new(&device), Optimizer::new(OptimizerConfig::default()));
    for step in 1..=60 {
        let options = StepOptions { step, learning_rate: 0.01, grad_clip: 1.0 };
        let stats = train_step(model.as_mut(), &objective, &mut optimizer, std::slice::from_ref(&batch), &options)?;
        if step % 20 == 0 {
            println!("step {step}: loss {:.3}", stats.read()?.0);
        }
    }

    let folder = std::env::temp_dir().join(format!("own_model_{}", std::process::id()));
    save_with_config(model.as_ref(), &config, None, &folder)?;
    let loaded = load_with(&folder, &LoadOptions::new(&device).with_model_type(ModelType::new("tiny", build)))?;
    let generation = generate(loaded.model.as_ref(), None, &[10, 11, 12], &GenerateOptions::default())?;
    println!("10 11 12 {:?} ...", &generation.tokens[..5]);
    std::fs::remove_dir_all(&folder).map_err(alluvium::core::Error::io(&folder, "remove"))
}
