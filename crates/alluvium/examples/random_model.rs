//! Writes a model of random weights, for measurements: `random_model CONFIG_DIR TOKENIZER_DIR OUT_DIR`, where CONFIG_DIR
//! has the `config.json` and TOKENIZER_DIR the files of a tokenizer.

use alluvium::Device;
use alluvium::lm::{Config, Tokenizer, initialize, save};
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<PathBuf> = std::env::args().skip(1).map(PathBuf::from).collect();
    let [config, tokenizer, out] = &args[..] else {
        return Err("random_model CONFIG_DIR TOKENIZER_DIR OUT_DIR".into());
    };
    let config = Config::read(config)?;
    let model = initialize(&config, 0, &Device::cpu())?;
    let tokenizer = Tokenizer::find(tokenizer)?.ok_or("there is no tokenizer.json")?;
    save(model.as_ref(), &config, Some(&tokenizer), out)?;
    Ok(())
}
