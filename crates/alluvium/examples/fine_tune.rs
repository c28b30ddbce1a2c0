//! Fine-tunes every parameter of an f32 checkpoint on documents of token ids and saves the result.
//!
//! `cargo run --release -p alluvium --example fine_tune -- MODEL TEXT OUT`

use alluvium::lm::{load, save};
use alluvium::train::data::{Corpus, TokenData};
use alluvium::train::{Event, NextToken, Preset, Settings, Trainer, TrainerParts, Validation};
use alluvium::{Device, core::Error};
use std::ops::ControlFlow;

fn main() -> alluvium::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, out] = &args[..] else { return Err(Error::value("fine_tune", "expected: MODEL TEXT OUT")) };
    let device = Device::cpu();
    let loaded = load(model.as_ref(), &device)?;
    let tokenizer = loaded.tokenizer.ok_or_else(|| Error::value("fine_tune", "the model has no tokenizer.json"))?;

    // a document for each paragraph; sequences of at most 128 tokens, 4 of them in a batch
    let text = std::fs::read_to_string(text).map_err(Error::io(text, "read"))?;
    let documents = text.split("\n\n").map(|paragraph| tokenizer.encode(paragraph));
    let corpus = Corpus::new(documents.collect::<alluvium::Result<_>>()?)?;
    let settings = Settings { iters: 20, warmup: 2, learning_rate: 1e-4, ..Settings::of(Preset::Tiny) };

    let mut trainer = Trainer::new(TrainerParts {
        model: loaded.model,
        config: loaded.config.clone(),
        objective: Box::new(NextToken::new(&device)),
        data: Box::new(TokenData::new(corpus, 128, 4, settings.seed)?),
        validation: Validation::default(),
        tokenizer: None,
        settings: settings.loop_settings(),
        device,
    });
    trainer.run(&mut |event| {
        if let Event::Measured(row) = event {
            println!("step {}: loss {:.3}", row.step, row.loss.unwrap_or(f64::NAN));
        }
        ControlFlow::Continue(())
    })?;
    save(trainer.model(), &loaded.config, Some(&tokenizer), out.as_ref())
}
