use super::DeviceArg;
use crate::output::{say, seconds};
use alluvium::lm::{LanguageModel, Options, Summary, Tokenizer, generate, load};
use alluvium::ops::Sampling;
use anyhow::Context;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Write text with a model
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json and the safetensors files
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Text to continue; - or nothing reads it from standard input
    #[arg(long, short, value_name = "TEXT")]
    prompt: Option<String>,
    /// At most this many new tokens
    #[arg(long, short, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    temp: f32,
    /// Only the K likeliest tokens; 0 takes all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Only the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Only tokens at least this likely, relative to the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// The same seed writes the same text
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args, out: &mut impl Write) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let prompt = match args.prompt {
        Some(prompt) if prompt != "-" => prompt,
        _ => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
            text
        }
    };
    let loaded = load(&args.model, &device)?;
    let tokenizer = loaded.tokenizer.with_context(|| format!("{} has no tokenizer.json", args.model.display()))?;
    let sampling = Sampling { temperature: args.temp, top_k: args.top_k, top_p: args.top_p, min_p: args.min_p };
    let options =
        Options { max_tokens: args.max_tokens, sampling, seed: args.seed, stop: args.stop, ..Options::default() };
    let summary = Streamed::new(out).generate(loaded.model.as_ref(), &tokenizer, &prompt, &options)?;
    let rate = |tokens: usize, time: f64| tokens as f64 / time.max(1e-9);
    say!(
        "prompt: {} tokens, {:.1} tokens/s · text: {} tokens, {:.1} tokens/s · {} · peak {}",
        summary.prompt_tokens,
        rate(summary.prompt_tokens, summary.prefill_seconds),
        summary.tokens.len(),
        rate(summary.tokens.len().saturating_sub(1), summary.decode_seconds),
        seconds(summary.prefill_seconds + summary.decode_seconds),
        crate::output::bytes(device.peak_memory()),
    );
    Ok(())
}

/// Text on its way out, piece by piece.
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

    /// Continues the prompt, writing as it goes, and ends the line.
    pub(crate) fn generate(
        &mut self,
        model: &dyn LanguageModel,
        tokenizer: &Tokenizer,
        prompt: &str,
        options: &Options,
    ) -> anyhow::Result<Summary> {
        let ids = tokenizer.encode(prompt)?;
        let mut failed = None;
        let summary = generate(model, tokenizer, &ids, options, &mut |text| {
            Ok(match self.write(text) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            })
        })?;
        failed.map_or(Ok(()), Err)?;
        self.write("\n")?;
        Ok(summary)
    }
}
