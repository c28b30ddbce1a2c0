//! What activations in 8 bits cost a model: `activation_error MODEL TEXT_FILE IDS [LOGITS]` reads the first 600 tokens of a
//! text, writes their ids to the file IDS, and prints the mean Kullback-Leibler divergence of the next token's
//! distribution from that of f32 arithmetic on the same stored weights. LOGITS holds another program's logits for these
//! ids, f32 row by row; their divergence is printed, too.

use alluvium::core::cpu::{ActivationBits, Cpu};
use alluvium::lm::{LoadOptions, load_with, perplexity};
use alluvium::{Device, Result, Tensor};
use std::path::{Path, PathBuf};

const TOKENS: usize = 600;
/// Tokens that are read at once: few enough for products that read activations in 8 bits.
const STEP: usize = 8;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let args: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    let [model, text, ids_file, theirs @ ..] = &args[..] else {
        return Err("activation_error MODEL TEXT_FILE IDS [LOGITS]".into());
    };
    let exact = read(model, text, ActivationBits::All)?;
    let eight = read(model, text, ActivationBits::Eight)?;
    let ids: Vec<String> = exact.ids.iter().map(u32::to_string).collect();
    std::fs::write(ids_file, ids.join(" "))?;
    println!("activations in 8 bits: {:.2e}", divergence(&exact.logits, &eight.logits, exact.vocab));
    if let [theirs, ..] = theirs {
        let bytes = std::fs::read(theirs)?;
        let logits: Vec<f32> = bytes.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
        if logits.len() != exact.logits.len() {
            let (came, expected) = (logits.len(), exact.logits.len());
            return Err(format!("{}: {came} logits came, expected {expected}", theirs.display()).into());
        }
        println!("the other program: {:.2e}", divergence(&exact.logits, &logits, exact.vocab));
    }
    Ok(())
}

/// Tokens of a text and their logits.
struct Logits {
    ids: Vec<u32>,
    logits: Vec<f32>,
    vocab: usize,
}

fn read(model: &Path, text: &Path, bits: ActivationBits) -> std::result::Result<Logits, Box<dyn std::error::Error>> {
    let device: Device = Cpu::builder().activation_bits(bits).open()?.into();
    let loaded = load_with(model, &LoadOptions::new(&device))?;
    let tokenizer = loaded.tokenizer.ok_or("the model has no tokenizer")?;
    let mut ids = tokenizer.encode(&std::fs::read_to_string(text)?)?;
    if ids.len() < TOKENS {
        return Err(format!("the text has {} tokens, expected {TOKENS}", ids.len()).into());
    }
    ids.truncate(TOKENS);
    let mut cache = loaded.model.cache(1)?;
    let mut step = |ids: &[u32]| -> Result<Vec<f32>> {
        let input = Tensor::from_slice(ids, [1, ids.len()], &device)?;
        let hidden = loaded.model.forward_cached(&input, &mut cache)?;
        perplexity::logits(loaded.model.as_ref(), &hidden)?.to_vec::<f32>()
    };
    let mut logits = Vec::new();
    for ids in ids.chunks(STEP) {
        logits.extend(step(ids)?);
    }
    Ok(Logits { vocab: logits.len() / TOKENS, ids, logits })
}

/// The mean of `KL(p ‖ q)` over rows of logits.
fn divergence(p: &[f32], q: &[f32], vocab: usize) -> f64 {
    let rows = p.chunks_exact(vocab).zip(q.chunks_exact(vocab));
    rows.map(|(p, q)| {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    })
    .sum::<f64>()
        / (p.len() / vocab) as f64
}

fn log_softmax(x: &[f32]) -> Vec<f64> {
    let largest = x.iter().fold(f64::MIN, |m, &x| m.max(f64::from(x)));
    let sum = x.iter().map(|&x| (f64::from(x) - largest).exp()).sum::<f64>().ln() + largest;
    x.iter().map(|&x| f64::from(x) - sum).collect()
}
