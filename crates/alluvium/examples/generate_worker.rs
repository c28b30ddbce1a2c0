//! Alluvium's side of `bench/peers/compare_llama_cpp_speed.py`: `generate_worker MODEL ISA BITS
//! THREADS PROMPT TEXT` reads a model and answers each line of standard input with a line of JSON: the seconds of a prompt
//! of PROMPT tokens, and those of a token when TEXT tokens follow a prompt of 8. ISA is `avx2`, `avx512`, or another name
//! of an instruction set; BITS are the activation bits, `8` or `all`.

use alluvium::core::Error;
use alluvium::core::cpu::{ActivationBits, Cpu, Isa};
use alluvium::lm::{GenerateOptions, LanguageModel, Session, load};
use alluvium::{Device, Result};
use serde_json::json;
use std::io::{BufRead, Write};
use std::path::Path;

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, isa, bits, threads, prompt, text] = &args[..] else {
        return Err("generate_worker MODEL ISA BITS THREADS PROMPT TEXT".into());
    };
    let (threads, prompt, text): (usize, usize, usize) = (threads.parse()?, prompt.parse()?, text.parse()?);
    let bits = if bits == "8" { ActivationBits::Eight } else { ActivationBits::All };
    Cpu::builder().threads(threads).isa(named(isa)?).activation_bits(bits).open()?.share()?;
    let loaded = load(Path::new(model), &Device::cpu())?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let prompt = generate(loaded.model.as_ref(), prompt, 1)?.0;
        let token = generate(loaded.model.as_ref(), 8, text)?.1 / (text - 1).max(1) as f64;
        println!("{}", json!({ "prompt": prompt, "token": token }));
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// The instruction set of a name.
fn named(name: &str) -> Result<Isa> {
    let found = Isa::available().into_iter().find(|isa| isa.to_string() == name);
    found.ok_or_else(|| {
        let why = format!("{name:?} came, this CPU has {:?}", Isa::available());
        Error::value("generate_worker", why)
    })
}

/// The seconds of a prompt, and those of the tokens after the first.
fn generate(model: &dyn LanguageModel, prompt: usize, text: usize) -> Result<(f64, f64)> {
    let ids: Vec<u32> = (0..prompt as u32).map(|i| (i * 7919 + 11) % 350).collect();
    let options = GenerateOptions { max_tokens: text, ..GenerateOptions::default() };
    let generation = Session::new(model)?.without_snapshots().generate(None, &ids, &options)?;
    Ok((generation.prefill_seconds, generation.decode_seconds))
}
