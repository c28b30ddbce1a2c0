use super::DeviceArg;
use super::memory::MemoryArg;
use super::model::{LoadArgs, open};
use super::sampling::{SamplingArgs, max_tokens};
use crate::output::say;
use crate::signals::Stoppable;
use alluvium::lm::engine::EngineOptions;
use alluvium::lm::{LanguageModel, Loaded, Tokenizer};
use alluvium_serve::{AdaptedModel, Limits, ServeOptions, router, serve};
use anyhow::{Context, anyhow, bail};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Builder;

/// Serve a model over HTTP with OpenAI's and Anthropic's APIs, and a page to chat with it
///
/// Endpoints: /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /v1/embeddings, /v1/models,
/// /tokenize, /detokenize, /health, /metrics. Requests are completed together; what prompts have in common at their
/// beginning is read once. Flags of sampling apply where a request says nothing.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json and the safetensors files, a GGUF file, or a name on the Hugging Face
    /// Hub: org/name
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
    /// A further model: this one with an adapter, which requests name by NAME. Repeat the flag for several
    #[arg(long = "adapter", value_name = "NAME=DIR", value_parser = named, conflicts_with = "adapter_path")]
    adapters: Vec<(String, PathBuf)>,
    /// Address to listen on; with 0.0.0.0 other machines can connect
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// File with a key that requests must send as `Authorization: Bearer KEY` or `x-api-key: KEY`
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Requests that are completed together; further ones wait
    #[arg(long, value_name = "N", default_value_t = 8)]
    parallel: usize,
    /// Maximum number of tokens of a prompt and its completion [default: max_position_embeddings of the model]
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// MiB of states and caches that are kept for prompts with a common beginning; 0 keeps none
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    cache_size: usize,
    /// Maximum number of new tokens where a request says nothing
    #[arg(long, short, value_name = "N", default_value_t = 1024, value_parser = max_tokens)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArg,
    #[command(flatten)]
    memory: MemoryArg,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let api_key = args.api_key_file.as_deref().map(read_key).transpose()?;
    let load = if args.adapters.is_empty() { args.load.clone() } else { args.load.for_adapters() };
    let opened = open(&args.model, &load, &args.device, args.max_tokens, &args.memory)?;
    let defaults = args.sampling.options(args.max_tokens, &opened.tokenizer, &opened.folder)?;
    let limit = opened.config.text().get("max_position_embeddings").and_then(serde_json::Value::as_u64);
    let (model, adapters) = adapted(opened.model, &args.adapters, &load)?;
    let options = ServeOptions {
        model_name: name(&args.model),
        adapters,
        api_key,
        engine: EngineOptions {
            max_sequences: args.parallel,
            prefix_cache_bytes: args.cache_size.saturating_mul(1 << 20),
            ..EngineOptions::default()
        },
        defaults,
        max_context: args.ctx.or(limit.and_then(|limit| usize::try_from(limit).ok())).unwrap_or(32_768),
        limits: Limits::default(),
    };
    let limits = options.limits;
    if !args.host.is_loopback() && options.api_key.is_none() {
        say!("warning: everyone who reaches {} can use this server; --api-key-file asks for a key", args.host);
    }
    let tokenizer: Tokenizer = opened.tokenizer;
    let loaded = Loaded { model, tokenizer: Some(tokenizer), config: opened.config };
    let router = router(loaded, options).map_err(|why| anyhow!(why))?;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().context("cannot start threads")?;
    runtime.block_on(async {
        let address = (args.host, args.port);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {}:{}", args.host, args.port))?;
        writeln!(out, "listening on http://{}", listener.local_addr()?)?;
        out.flush()?;
        let signal = Stoppable::new();
        let stop = async move {
            while signal.check().is_continue() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        Ok(serve(listener, router, limits, stop).await?)
    })
}

/// The name and the folder of an adapter.
fn named(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, folder)) if !name.is_empty() && !folder.is_empty() => Ok((name.to_owned(), folder.into())),
        _ => Err("expected NAME=DIR: the name that requests give and the folder of the adapter".to_owned()),
    }
}

/// The plain model, and those with adapters, which share its tensors.
fn adapted(
    model: Box<dyn LanguageModel>,
    adapters: &[(String, PathBuf)],
    load: &LoadArgs,
) -> anyhow::Result<(Box<dyn LanguageModel>, Vec<AdaptedModel>)> {
    let one = |(name, folder): &(String, PathBuf)| {
        let mut own = model.share().with_context(|| format!("--adapter {name}: this model cannot be shared"))?;
        load.attach(folder, own.as_mut()).with_context(|| format!("--adapter {name}"))?;
        Ok(AdaptedModel { name: name.clone(), model: own.into() })
    };
    let adapters = adapters.iter().map(one).collect::<anyhow::Result<_>>()?;
    Ok((model, adapters))
}

/// The key in a file: its only line.
fn read_key(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let key = text.trim();
    match key.is_empty() || key.contains(char::is_whitespace) {
        true => bail!("{}: expected one line with a key", file.display()),
        false => Ok(key.to_owned()),
    }
}

/// The model's name for clients: that on the Hub, or of the folder.
fn name(model: &Path) -> String {
    match model.exists() {
        false => model.display().to_string(),
        true => {
            let path = model.canonicalize().unwrap_or_else(|_| model.to_owned());
            path.file_stem()
                .filter(|_| path.is_file())
                .or(path.file_name())
                .unwrap_or_default()
                .to_string_lossy()
                .into()
        }
    }
}
