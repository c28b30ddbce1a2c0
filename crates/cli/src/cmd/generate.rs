use super::{DeviceArg, is_here};
use crate::output::{bytes, say, seconds};
use alluvium::lm::cache::file as prompt_cache;
use alluvium::lm::tokenizer::messages::{Ending, Message};
use alluvium::lm::{Likely, Options, Repetition, Session, Summary, Tokenizer, load};
use alluvium::ops::Sampling;
use anyhow::{Context, bail};
use serde_json::{Map, Value, json};
use std::io::{Read, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Generate text with a model
///
/// The prompt is rendered with the model's chat template where it has one.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json and the safetensors files
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Prompt; the escapes \n and \t become a new line and a tab. `-`, or no flag, reads it unchanged from standard input
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Maximum number of new tokens
    #[arg(long, short, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// System prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "ignore_chat_template", allow_hyphen_values = true)]
    system_prompt: Option<String>,
    /// Beginning of the response, which the model continues
    #[arg(long, value_name = "TEXT", conflicts_with = "ignore_chat_template", allow_hyphen_values = true)]
    prefill_response: Option<String>,
    /// Continue the raw prompt, without the chat template
    #[arg(long)]
    ignore_chat_template: bool,
    /// Variables for the chat template, as JSON: {"enable_thinking": false}
    #[arg(long, value_name = "JSON", conflicts_with = "ignore_chat_template")]
    chat_template_config: Option<String>,
    /// Further tokens that end the completion; may be given several times
    #[arg(long, value_name = "TOKEN", num_args = 1..)]
    extra_eos_token: Vec<String>,
    /// Prompt cache from `alluvium cache_prompt`; the prompt follows it
    #[arg(long, value_name = "FILE")]
    prompt_cache_file: Option<PathBuf>,
    /// Prompt tokens per forward pass: fewer take less memory, more may be faster [default: chosen for the device]
    #[arg(long, value_name = "N")]
    prefill_step_size: Option<NonZeroUsize>,
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
}

fn some_text(text: &str) -> Result<String, &'static str> {
    match text {
        "" => Err("expected at least one character"),
        text => Ok(text.to_owned()),
    }
}

impl SamplingArgs {
    pub(crate) fn options(self, max_tokens: usize) -> Options {
        let SamplingArgs { temp, top_k, top_p, min_p, repetition_penalty, repetition_context_size, seed, stop } = self;
        Options {
            max_tokens,
            sampling: Sampling { temperature: temp, top_k, top_p, min_p },
            repetition: Repetition { penalty: repetition_penalty, context: repetition_context_size },
            seed,
            stop,
            ..Options::default()
        }
    }
}

pub(crate) fn run(args: Args, out: &mut impl Write) -> anyhow::Result<()> {
    is_here(&args.model)?;
    let device = args.device.open()?;
    // mlx-lm replaces the same escapes
    let prompt = args.prompt.map(|prompt| prompt.replace("\\n", "\n").replace("\\t", "\t"));
    let prompt = text_or_stdin(prompt.as_deref())?;
    let loaded = load(&args.model, &device)?;
    let tokenizer = tokenizer(loaded.tokenizer, &args.model)?;
    let cached = args
        .prompt_cache_file
        .as_deref()
        .map(|path| prompt_cache::load(path, &loaded.model.cache_shapes(), &device))
        .transpose()?;
    let use_template = !args.ignore_chat_template && tokenizer.chat_template().is_some();
    let asked = [
        ("--system-prompt", args.system_prompt.is_some()),
        ("--prefill-response", args.prefill_response.is_some()),
        ("--chat-template-config", args.chat_template_config.is_some()),
    ];
    if let Some((flag, _)) = asked.iter().find(|(_, given)| *given && !use_template) {
        bail!("{flag} needs a chat template, {} has none; leave the flag out", args.model.display());
    }
    let prompt = match use_template {
        true => {
            let chat =
                Chat { system: args.system_prompt, begun: args.prefill_response, config: args.chat_template_config };
            tokenizer.encode_plain(&chat.text(&tokenizer, &prompt, cached.is_some())?)?
        }
        false => tokenizer.encode(&prompt)?,
    };
    let mut options = args.sampling.options(args.max_tokens);
    options.logprobs = args.logprobs;
    options.stop_tokens = ids(&tokenizer, &args.extra_eos_token, &args.model)?;
    let mut session = match cached {
        Some((cache, _)) => Session::resume(loaded.model.as_ref(), cache),
        None => Session::new(loaded.model.as_ref())?,
    }
    .for_one_prompt()
    .reading(args.prefill_step_size);
    if args.json {
        let mut text = Vec::new();
        let summary = Streamed::new(&mut text).generate(&mut session, &tokenizer, &prompt, &options);
        let summary = summary.map_err(|error| explained(error, &session, &args.model))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        writeln!(out, "{}", as_json(&text, &summary, device.peak_memory()))?;
        return Ok(());
    }
    let mut streamed = Streamed::new(out);
    let summary = streamed.generate(&mut session, &tokenizer, &prompt, &options);
    let summary = summary.map_err(|error| explained(error, &session, &args.model))?;
    streamed.write("\n")?;
    report(&summary, device.peak_memory());
    Ok(())
}

/// A prompt for the model's chat template.
struct Chat {
    system: Option<String>,
    begun: Option<String>,
    config: Option<String>,
}

impl Chat {
    /// Renders the template; with a prompt cache, the part before the prompt is left out.
    fn text(self, tokenizer: &Tokenizer, prompt: &str, cached: bool) -> anyhow::Result<String> {
        let variables = variables(self.config.as_deref())?;
        let ending = if self.begun.is_some() { Ending::Continue } else { Ending::Answer };
        let rendered = |prompt: &str| {
            let system = self.system.as_deref().map(|text| Message::new("system", text));
            let begun = self.begun.as_deref().map(|text| Message::new("assistant", text));
            let messages: Vec<Message> =
                system.into_iter().chain([Message::new("user", prompt)]).chain(begun).collect();
            tokenizer.chat(&messages, ending, &variables)
        };
        let text = rendered(prompt)?;
        if !cached {
            return Ok(text);
        }
        let before = rendered("<query>")?.find("<query>").context("the chat template leaves out the prompt")?;
        Ok(text.get(before..).unwrap_or_default().to_owned())
    }
}

/// Template variables, from the JSON of a flag.
pub(crate) fn variables(json: Option<&str>) -> anyhow::Result<Map<String, Value>> {
    match json.map(serde_json::from_str).transpose().context("--chat-template-config is not valid JSON")? {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map),
        Some(_) => bail!("--chat-template-config: expected a JSON object"),
    }
}

pub(crate) fn tokenizer(found: Option<Tokenizer>, model: &Path) -> anyhow::Result<Tokenizer> {
    found.with_context(|| format!("{} has no tokenizer.json", model.display()))
}

/// The text of a flag; `-` or no flag reads standard input.
pub(crate) fn text_or_stdin(text: Option<&str>) -> anyhow::Result<String> {
    match text {
        Some(text) if text != "-" => Ok(text.to_owned()),
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
            Ok(text)
        }
    }
}

/// Adds to an error of a session that the model's logits are not finite, where they are not.
pub(crate) fn explained(error: anyhow::Error, session: &Session<'_>, model: &Path) -> anyhow::Error {
    let wrong = |x: &f32| x.is_nan() || *x == f32::INFINITY;
    match session.logits().and_then(|logits| logits.to_floats()) {
        Ok(logits) if logits.iter().any(wrong) => {
            let why = "its weights or activations are not finite; the checkpoint may be broken or badly converted";
            error.context(format!("{}: {why}", model.display()))
        }
        _ => error,
    }
}

fn ids(tokenizer: &Tokenizer, tokens: &[String], model: &Path) -> anyhow::Result<Vec<u32>> {
    let file = model.join("tokenizer.json");
    let none = |token: &String| format!("--extra-eos-token: there is no token `{token}` in {}", file.display());
    let id = |token: &String| tokenizer.token_id(token).with_context(|| none(token));
    tokens.iter().map(id).collect()
}

pub(crate) fn report(summary: &Summary, peak: usize) {
    let rate = |tokens: usize, time: f64| tokens as f64 / time.max(1e-9);
    say!(
        "prompt: {} tokens, {:.1} tokens/s · completion: {} tokens, {:.1} tokens/s · {} · peak {}",
        summary.prompt_tokens,
        rate(summary.prompt_tokens - summary.reused_tokens, summary.prefill_seconds),
        summary.tokens.len(),
        rate(summary.tokens.len().saturating_sub(1), summary.decode_seconds),
        seconds(summary.prefill_seconds + summary.decode_seconds),
        bytes(peak),
    );
}

fn as_json(text: &str, summary: &Summary, peak: usize) -> Value {
    let likely = |Likely { logprob, top }: &Likely| json!({"logprob": logprob, "top": top});
    let mut object = json!({
        "text": text,
        "prompt_tokens": summary.prompt_tokens,
        "tokens": summary.tokens,
        "finish_reason": format!("{:?}", summary.reason).to_lowercase(),
        "prefill_seconds": summary.prefill_seconds,
        "decode_seconds": summary.decode_seconds,
        "peak_memory": peak,
    });
    if !summary.logprobs.is_empty() {
        object["logprobs"] = summary.logprobs.iter().map(likely).collect();
    }
    object
}

/// Writes a completion while it is generated.
pub(crate) struct Streamed<'a, W: Write> {
    out: &'a mut W,
}

impl<'a, W: Write> Streamed<'a, W> {
    pub(crate) fn new(out: &'a mut W) -> Self {
        Streamed { out }
    }

    pub(crate) fn write(&mut self, text: &str) -> std::io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Generates and writes the completion of a prompt.
    pub(crate) fn generate(
        &mut self,
        session: &mut Session<'_>,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        options: &Options,
    ) -> anyhow::Result<Summary> {
        let mut failed = None;
        let summary = session.generate(tokenizer, prompt, options, &mut |text| {
            Ok(match self.write(text) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            })
        })?;
        failed.map_or(Ok(()), Err)?;
        Ok(summary)
    }
}
