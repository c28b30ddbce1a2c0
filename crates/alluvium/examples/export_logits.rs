//! Writes what a model says of a prompt of 200 tokens, for a comparison with another implementation:
//! `export_logits MODEL_DIR OURS.json [TEXT_FILE]`.

use alluvium::core::Error;
use alluvium::lm::formats::safetensors;
use alluvium::lm::{GenerateOptions, Tokenizer, generate, load, perplexity};
use alluvium::ops::Sampling;
use alluvium::{Device, Result, Tensor};
use std::path::PathBuf;

const TOKENS: usize = 200;
const GREEDY: usize = 32;
/// Text that is always there.
const TEXT: &str = include_str!("export_logits.rs");

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(PathBuf::from);
    let (Some(folder), Some(out)) = (args.next(), args.next()) else {
        return Err("export_logits MODEL_DIR OURS.json [TEXT_FILE]".into());
    };
    let text = match args.next() {
        Some(path) => std::fs::read_to_string(path)?,
        None => TEXT.to_owned(),
    };
    let device = Device::cpu();
    let loaded = load(&folder, &device)?;
    let tokenizer = loaded.tokenizer.ok_or("the folder has no tokenizer.json")?;
    let (text, ids) = prompt(&tokenizer, &text)?;

    let mut cache = loaded.model.cache(1)?;
    let input = Tensor::from_slice(&ids, [1, ids.len()], &device)?;
    let hidden = loaded.model.forward_cached(&input, &mut cache)?;
    let logits = perplexity::logits(loaded.model.as_ref(), &hidden)?;
    let logits = logits.reshape([ids.len(), logits.shape().last()])?;
    let options = GenerateOptions {
        max_tokens: GREEDY,
        sampling: Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 },
        ..GenerateOptions::default()
    };
    let generation = generate(loaded.model.as_ref(), Some(&tokenizer), &ids, &options)?;

    let file = out.with_extension("safetensors");
    safetensors::write(&file, &[("logits".to_owned(), &logits)], &[])?;
    let name = file.file_name().and_then(|n| n.to_str()).ok_or("the output has no file name")?;
    let ours = serde_json::json!({"ids": ids, "text": text, "logits": name, "greedy": generation.tokens});
    std::fs::write(&out, ours.to_string())?;
    Ok(())
}

/// The longest prefix of the text with exactly this number of tokens.
fn prompt(tokenizer: &Tokenizer, text: &str) -> Result<(String, Vec<u32>)> {
    for (end, _) in text.char_indices() {
        let ids = tokenizer.encode(&text[..end])?;
        if ids.len() == TOKENS {
            return Ok((text[..end].to_owned(), ids));
        }
    }
    Err(Error::value("prompt", format!("the text has no start of {TOKENS} tokens; give a longer one")))
}
