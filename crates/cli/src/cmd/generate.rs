use super::prompt::{SessionArgs, TemplateArgs, text_or_stdin, tokenizer};
use super::{DeviceArg, is_here};
use crate::output::{bytes, say, seconds};
use alluvium::lm::{
    GenerateOptions, Generation, Message, PromptEnd, RepetitionPenalty, TokenLogprob, TokenStream, Tokenizer, load,
};
use alluvium::ops::Sampling;
use anyhow::Context;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Generate text with a model
///
/// The prompt is rendered with the model's chat template where it has one.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json and the safetensors files
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Prompt; the escapes \n and \t become a new line and a tab. `-`, or no flag, reads it unchanged from standard
    /// input
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Maximum number of new tokens
    #[arg(long, short, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    #[command(flatten)]
    template: TemplateArgs,
    /// Beginning of the response, which the model continues
    #[arg(long, value_name = "TEXT", conflicts_with = "ignore_chat_template", allow_hyphen_values = true)]
    prefill_response: Option<String>,
    #[command(flatten)]
    session: SessionArgs,
    /// Write completion, tokens and times as one JSON object
    #[arg(long)]
    json: bool,
    /// With --json: log-probabilities of each token and of the N most likely alternatives
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArg,
}

/// Sampling, and what ends a completion.
#[derive(clap::Args)]
pub(crate) struct SamplingArgs {
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    temp: f32,
    /// Sample from the K most likely tokens; 0 disables it
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Sample from the most likely tokens whose probabilities sum to P; 1 disables it
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Drop tokens less likely than P times the most likely one; 0 disables it
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Repetition penalty; 1 disables it
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Number of recent tokens that the repetition penalty looks at
    #[arg(long, value_name = "N", default_value_t = 20)]
    repetition_context_size: usize,
    /// Seed of the sampling
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = some_text, allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Further tokens that end the completion; may be given several times
    #[arg(long, value_name = "TOKEN", num_args = 1..)]
    extra_eos_token: Vec<String>,
}

fn some_text(text: &str) -> Result<String, &'static str> {
    match text {
        "" => Err("expected at least one character"),
        text => Ok(text.to_owned()),
    }
}

impl SamplingArgs {
    /// The options of a generation with the tokenizer of the model in a folder.
    pub(crate) fn options(
        &self,
        max_tokens: usize,
        tokenizer: &Tokenizer,
        model: &Path,
    ) -> anyhow::Result<GenerateOptions> {
        let &SamplingArgs { temp, top_k, top_p, min_p, repetition_penalty, repetition_context_size, seed, .. } = self;
        let file = model.join("tokenizer.json");
        let none = |token: &String| format!("--extra-eos-token: there is no token `{token}` in {}", file.display());
        let id = |token: &String| tokenizer.token_id(token).with_context(|| none(token));
        Ok(GenerateOptions {
            max_tokens,
            sampling: Sampling { temperature: temp, top_k, top_p, min_p },
            repetition_penalty: RepetitionPenalty {
                penalty: repetition_penalty,
                context_size: repetition_context_size,
            },
            seed,
            stop: self.stop.clone(),
            stop_token_ids: self.extra_eos_token.iter().map(id).collect::<anyhow::Result<_>>()?,
            logprobs: None,
        })
    }
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    is_here(&args.model)?;
    args.template.check_cache(args.session.prompt_cache_file.as_deref())?;
    let device = args.device.open()?;
    let prompt = text_or_stdin(args.prompt.as_deref())?;
    let loaded = load(&args.model, &device)?;
    let tokenizer = tokenizer(loaded.tokenizer, &args.model)?;
    let cache = args.session.cache(loaded.model.as_ref())?;
    let ids = prompt_ids(args, &tokenizer, prompt)?;
    let mut options = args.sampling.options(args.max_tokens, &tokenizer, &args.model)?;
    options.logprobs = args.logprobs;
    let mut session = args.session.session(loaded.model.as_ref(), cache)?.without_snapshots();
    let context = || args.model.display().to_string();
    if args.json {
        let generation = session.generate(Some(&tokenizer), &ids, &options).with_context(context)?;
        writeln!(out, "{}", as_json(&generation, &tokenizer, device.peak_memory())?)?;
        return Ok(());
    }
    let stream = session.stream(Some(&tokenizer), &ids, &options).with_context(context)?;
    let generation = write_stream(stream, out).with_context(context)?;
    writeln!(out)?;
    report(&generation, device.peak_memory());
    Ok(())
}

/// The ids of the prompt; with a prompt cache those of the part that follows it.
fn prompt_ids(args: &Args, tokenizer: &Tokenizer, prompt: String) -> anyhow::Result<Vec<u32>> {
    let prefill = args.prefill_response.as_deref();
    if !args.template.applies(tokenizer, &args.model, prefill)? {
        return Ok(tokenizer.encode(&prompt)?);
    }
    let mut conversation = args.template.conversation()?;
    conversation.messages.push(Message::user(prompt));
    if let Some(text) = prefill {
        conversation.messages.push(Message::assistant(text));
        conversation.end = PromptEnd::ContinueFinalMessage;
    }
    Ok(match args.session.prompt_cache_file {
        Some(_) => tokenizer.encode_without_special_tokens(&conversation.render_after_cache(tokenizer)?)?,
        None => conversation.encode(tokenizer)?,
    })
}

/// Writes a completion while it is generated.
pub(crate) fn write_stream(mut stream: TokenStream<'_, '_>, out: &mut impl Write) -> anyhow::Result<Generation> {
    for token in stream.by_ref() {
        out.write_all(token?.text.as_bytes())?;
        out.flush()?;
    }
    Ok(stream.into_generation())
}

pub(crate) fn report(generation: &Generation, peak: usize) {
    let rate = |tokens: usize, time: f64| tokens as f64 / time.max(1e-9);
    say!(
        "prompt: {} tokens, {:.1} tokens/s · completion: {} tokens, {:.1} tokens/s · {} · peak {}",
        generation.prompt_tokens,
        rate(generation.prompt_tokens - generation.reused_tokens, generation.prefill_seconds),
        generation.tokens.len(),
        rate(generation.tokens.len().saturating_sub(1), generation.decode_seconds),
        seconds(generation.prefill_seconds + generation.decode_seconds),
        bytes(peak),
    );
}

/// A completion as JSON.
pub(crate) fn as_json(generation: &Generation, tokenizer: &Tokenizer, peak: usize) -> anyhow::Result<Value> {
    let entry = |&(token, logprob): &(u32, f32)| {
        Ok(json!({"token": token, "text": tokenizer.decode(&[token])?, "logprob": logprob}))
    };
    let logprob = |TokenLogprob { token, logprob, top_logprobs }: &TokenLogprob| -> anyhow::Result<Value> {
        let mut object = entry(&(*token, *logprob))?;
        object["top_logprobs"] = top_logprobs.iter().map(entry).collect::<anyhow::Result<_>>()?;
        Ok(object)
    };
    let mut object = json!({
        "text": generation.text,
        "prompt_tokens": generation.prompt_tokens,
        "reused_tokens": generation.reused_tokens,
        "tokens": generation.tokens,
        "finish_reason": generation.finish_reason.map(|reason| reason.as_str()),
        "prefill_seconds": generation.prefill_seconds,
        "decode_seconds": generation.decode_seconds,
        "peak_memory": peak,
    });
    if !generation.logprobs.is_empty() {
        object["logprobs"] = generation.logprobs.iter().map(logprob).collect::<anyhow::Result<_>>()?;
    }
    Ok(object)
}
