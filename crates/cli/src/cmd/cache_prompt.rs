use super::DeviceArg;
use super::memory::MemoryArg;
use super::model::{LoadArgs, open};
use super::prompt::{PrefillArgs, TemplateArgs, text_or_stdin};
use crate::output::bytes;
use alluvium::lm::Session;
use alluvium::lm::cache::save_prompt_cache;
use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

/// Save the cache of a prompt for `generate --prompt-cache-file`, here and in mlx-lm
///
/// The prompt is rendered as a user message that is not ended: the prompt of `generate` continues it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json and the safetensors files, or a name on the Hugging Face Hub: org/name
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
    /// Prompt; the escapes \n and \t become a new line and a tab. `-`, or no flag, reads it unchanged from standard
    /// input
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// File to write
    #[arg(long, value_name = "FILE")]
    prompt_cache_file: PathBuf,
    /// Write the result as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    prefill: PrefillArgs,
    #[command(flatten)]
    device: DeviceArg,
    #[command(flatten)]
    memory: MemoryArg,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let file = &args.prompt_cache_file;
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        bail!("--prompt-cache-file {}: there is no folder {}; make it first", file.display(), folder.display());
    }
    let prompt = text_or_stdin(args.prompt.as_deref())?;
    let opened = args.template.apply(open(&args.model, &args.load, &args.device, prompt.len() / 4, &args.memory)?)?;
    let ids = args.template.cached_prompt(&opened.tokenizer, &args.model, prompt)?;
    let session = Session::new(opened.model.as_ref())?.without_snapshots();
    let mut session = session.with_prefill_step_size(args.prefill.prefill_step_size);
    session.prefill(&ids).with_context(|| args.model.display().to_string())?;
    let metadata = BTreeMap::from([
        ("model".to_owned(), args.model.display().to_string()),
        ("tokenizer_config".to_owned(), "{}".to_owned()),
    ]);
    save_prompt_cache(file, session.cache(), &metadata)?;
    let (tokens, size) = (ids.len(), session.cache().bytes());
    match args.json {
        true => {
            let result = serde_json::json!({"path": file.display().to_string(), "tokens": tokens, "bytes": size});
            writeln!(out, "{result}")?;
        }
        false => writeln!(out, "{}: {tokens} tokens, {}", file.display(), bytes(size))?,
    }
    Ok(())
}
