use super::generate::{text_or_stdin, tokenizer};
use super::{DeviceArg, is_here};
use crate::output::bytes;
use alluvium::lm::cache::file as prompt_cache;
use alluvium::lm::tokenizer::messages::{Ending, Message};
use alluvium::lm::{Session, load};
use anyhow::bail;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

/// Save the cache of a prompt for `generate --prompt-cache-file`, here and in mlx-lm
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json and the safetensors files
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Prompt; `-`, or no flag, reads it from standard input
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File to write
    #[arg(long, value_name = "FILE")]
    prompt_cache_file: PathBuf,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    is_here(&args.model)?;
    let file = &args.prompt_cache_file;
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        bail!("--prompt-cache-file {}: there is no folder {}; make it first", file.display(), folder.display());
    }
    let device = args.device.open()?;
    let prompt = text_or_stdin(args.prompt.as_deref())?;
    let loaded = load(&args.model, &device)?;
    let tokenizer = tokenizer(loaded.tokenizer, &args.model)?;
    let ids = match tokenizer.chat_template() {
        Some(_) => {
            let messages = [Message::new("user", prompt)];
            tokenizer.encode_plain(&tokenizer.chat(&messages, Ending::Continue, &serde_json::Map::new())?)?
        }
        None => tokenizer.encode(&prompt)?,
    };
    let mut session = Session::new(loaded.model.as_ref())?.for_one_prompt();
    session.read(&ids)?;
    let about = BTreeMap::from([
        ("model".to_owned(), args.model.display().to_string()),
        ("tokenizer_config".to_owned(), "{}".to_owned()),
    ]);
    prompt_cache::save(&args.prompt_cache_file, session.cache(), &about)?;
    let size = bytes(session.cache().bytes());
    writeln!(out, "{}: {} tokens, {size}", args.prompt_cache_file.display(), ids.len())?;
    Ok(())
}
