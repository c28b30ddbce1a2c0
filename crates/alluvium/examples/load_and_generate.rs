//! Loads a model from a folder and continues a text, token by token.
//!
//! `cargo run --release -p alluvium --example load_and_generate -- MODEL PROMPT`

use alluvium::lm::{GenerateOptions, Session, load};
use alluvium::{Device, Result, core::Error};
use std::io::Write;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompt] = &args[..] else {
        return Err(Error::value("load_and_generate", "expected: MODEL PROMPT"));
    };
    let loaded = load(model.as_ref(), &Device::cpu())?;
    let tokenizer = loaded.tokenizer.ok_or_else(|| Error::value("load_and_generate", "there is no tokenizer.json"))?;
    let options = GenerateOptions { max_tokens: 40, ..GenerateOptions::default() };

    let mut session = Session::new(loaded.model.as_ref())?;
    for token in session.stream(Some(&tokenizer), &tokenizer.encode(prompt)?, &options)? {
        let mut out = std::io::stdout();
        write!(out, "{}", token?.text).and_then(|()| out.flush()).map_err(Error::io("stdout", "write"))?;
    }
    println!();
    Ok(())
}
