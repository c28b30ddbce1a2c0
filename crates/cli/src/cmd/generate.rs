use super::DeviceArg;
use super::memory::MemoryArg;
use super::model::{LoadArgs, open};
use super::prompt::{SessionArgs, TemplateArgs, text_or_stdin};
use super::response::{Form, Prompt, Response};
use super::sampling::{SamplingArgs, max_tokens};
use crate::output::{bytes, note, seconds, set_quiet};
use alluvium::lm::tokenizer::reasoning::ReasoningParser;
use alluvium::lm::{Generation, Message, PromptEnd, ReasoningBudget, TokenLogprob, TokenStream, Tokenizer};
use anyhow::Context;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Generate text with a model
///
/// The prompt is rendered with the model's chat template where it has one.
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
    /// Maximum number of new tokens
    #[arg(long, short, alias = "n-predict", short_alias = 'n', value_name = "N", default_value_t = 256)]
    #[arg(value_parser = max_tokens)]
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
    /// True or False, as in mlx-lm; False is --quiet
    #[arg(long, value_name = "BOOL", value_parser = ["True", "T", "true", "False", "F", "false"])]
    verbose: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArg,
    #[command(flatten)]
    memory: MemoryArg,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    if args.verbose.as_deref().is_some_and(|verbose| verbose.to_lowercase().starts_with('f')) {
        set_quiet();
    }
    args.template.check_cache(args.session.prompt_cache_file.as_deref())?;
    let prompt = text_or_stdin(args.prompt.as_deref())?;
    // most tokens have four bytes
    let tokens = args.max_tokens.saturating_add(prompt.len() / 4);
    let opened = args.template.apply(open(&args.model, &args.load, &args.device, tokens, &args.memory)?)?;
    let (tokenizer, model) = (&opened.tokenizer, opened.model.as_ref());
    let cache = args.session.cache(model)?;
    let (ids, thinking) = prompt_ids(args, tokenizer, prompt)?;
    opened.warn_of_length(ids.len());
    let mut options = args.sampling.options(args.max_tokens, tokenizer, &opened.folder)?;
    options.logprobs = args.logprobs;
    options.reasoning_budget =
        args.sampling.reasoning_budget.map(|tokens| ReasoningBudget { tokens, thinking: thinking.clone() });
    let mut session = args.session.session(model, cache)?.without_snapshots();
    let form = match (args.json, std::io::stdout().is_terminal()) {
        (true, _) => Form::Json,
        (false, true) => Form::Marked,
        (false, false) => Form::Answer,
    };
    let mut response = Response::new(form, thinking);
    let prompt = Prompt { tokenizer, ids: &ids, options: &options };
    let never = &mut || ControlFlow::Continue(());
    let generation = prompt.respond(&mut session, &mut response, never, out).with_context(|| opened.name())?;
    if args.json {
        let mut object = as_json(&generation, &response, &prompt)?;
        object["peak_memory"] = opened.device.peak_memory().into();
        writeln!(out, "{object}")?;
        return Ok(());
    }
    writeln!(out)?;
    response.note_cut(&generation);
    report_speed(&generation);
    let time = seconds(generation.prefill_seconds + generation.decode_seconds);
    note!("time: {time} · peak memory: {}", bytes(opened.device.peak_memory()));
    Ok(())
}

/// The ids of the prompt, with a prompt cache those of the part that follows it, and the parser of the completion.
fn prompt_ids(args: &Args, tokenizer: &Tokenizer, prompt: String) -> anyhow::Result<(Vec<u32>, ReasoningParser)> {
    let prefill = args.prefill_response.as_deref();
    if !args.template.applies(tokenizer, &args.model, prefill)? {
        return Ok((tokenizer.encode(&prompt)?, ReasoningParser::after("", None)));
    }
    let mut conversation = args.template.conversation()?;
    conversation.messages.push(Message::user(prompt));
    if let Some(text) = prefill {
        conversation.messages.push(Message::assistant(text));
        conversation.end = PromptEnd::ContinueFinalMessage;
    }
    let text = match args.session.prompt_cache_file {
        Some(_) => conversation.render_after_cache(tokenizer)?,
        None => conversation.render(tokenizer)?,
    };
    let thinking = ReasoningParser::after(&text, tokenizer.thinking());
    Ok((tokenizer.encode_without_special_tokens(&text)?, thinking))
}

/// Writes a completion while it is generated.
pub(crate) fn write_stream(mut stream: TokenStream<'_, '_>, out: &mut impl Write) -> anyhow::Result<Generation> {
    for token in stream.by_ref() {
        out.write_all(token?.text.as_bytes())?;
        out.flush()?;
    }
    Ok(stream.into_generation())
}

/// Says the speed of a completion, in a line that fits 80 columns.
pub(crate) fn report_speed(generation: &Generation) {
    let rate = |tokens: usize, time: f64| tokens as f64 / time.max(1e-9);
    note!(
        "prompt: {} tokens, {:.1} tokens/s · completion: {} tokens, {:.1} tokens/s",
        generation.prompt_tokens,
        rate(generation.prompt_tokens - generation.reused_tokens, generation.prefill_seconds),
        generation.tokens.len(),
        rate(generation.tokens.len().saturating_sub(1), generation.decode_seconds),
    );
}

/// A completion as JSON.
pub(crate) fn as_json(generation: &Generation, response: &Response, prompt: &Prompt<'_>) -> anyhow::Result<Value> {
    let tokenizer = prompt.tokenizer;
    let entry = |&(token, logprob): &(u32, f32)| {
        Ok(json!({"token": token, "text": tokenizer.decode(&[token])?, "logprob": logprob}))
    };
    let logprob = |TokenLogprob { token, logprob, top_logprobs }: &TokenLogprob| -> anyhow::Result<Value> {
        let mut object = entry(&(*token, *logprob))?;
        object["top_logprobs"] = top_logprobs.iter().map(entry).collect::<anyhow::Result<_>>()?;
        Ok(object)
    };
    let mut object = json!({
        "text": response.answer,
        "reasoning": response.reasoning,
        "prompt_tokens": generation.prompt_tokens,
        "reused_tokens": generation.reused_tokens,
        "tokens": generation.tokens,
        "finish_reason": generation.finish_reason.map(|reason| reason.as_str()),
        "prefill_seconds": generation.prefill_seconds,
        "decode_seconds": generation.decode_seconds,
        "seed": prompt.options.seed,
    });
    if !generation.logprobs.is_empty() {
        object["logprobs"] = generation.logprobs.iter().map(logprob).collect::<anyhow::Result<_>>()?;
    }
    Ok(object)
}
