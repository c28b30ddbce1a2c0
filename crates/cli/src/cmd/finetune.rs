use super::DeviceArg;
use super::hub::find_model;
use crate::output::{Interrupted, bar, bytes, count, note, say, seconds};
use crate::signals::Stoppable;
use alluvium::lm::{FineTuneType, GenerateOptions, Session};
use alluvium::train::finetune::{Finetune, FinetuneSettings, Start, test};
use alluvium::train::{Event, LossKind, MetricsRow, OptimizerKind, RunStatus, TrainDtype};
use anyhow::bail;
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::io::{IsTerminal, Write};
use std::num::ParseFloatError;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

/// Fine-tune a model: LoRA, DoRA or all parameters, on plain or quantized weights
///
/// Flags, defaults and files are those of mlx_lm.lora; docs/finetune.md says where the two differ. --data takes a
/// folder
/// with train.jsonl, valid.jsonl and test.jsonl, or one file. A line is a JSON object with `messages` (and `tools`),
/// `prompt` and `completion`, `text`, `instruction` and `output` (Alpaca), or `conversations` (ShareGPT). Samples are
/// packed without padding.
#[derive(clap::Args, Serialize)]
pub(crate) struct Args {
    #[command(flatten)]
    #[serde(flatten)]
    flags: Flags,
    /// YAML file with mlx-lm's keys, or a TOML file with the same; flags override it
    #[arg(long, short, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Continue the run in --adapter-path at its last checkpoint; the result is bit-identical to that of a run
    /// without a
    /// stop
    #[arg(long)]
    #[serde(skip)]
    resume: bool,
    /// Rank of the low-rank updates [default: 8]
    #[arg(long, value_name = "N", help_heading = "Adapters")]
    #[serde(skip)]
    rank: Option<usize>,
    /// Factor of the updates: lora_alpha / r in PEFT's terms [default: 20]
    #[arg(long, value_parser = finite::<f32>, value_name = "X", help_heading = "Adapters")]
    #[serde(skip)]
    scale: Option<f32>,
    /// Share of the inputs of the updates that is dropped in training [default: 0]
    #[arg(long, value_parser = finite::<f32>, value_name = "P", help_heading = "Adapters")]
    #[serde(skip)]
    dropout: Option<f32>,
    /// Modules to adapt, by their names in a layer (self_attn.q_proj) or in the model (lm_head) [default: all
    /// matrices of
    /// the layers]
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',', help_heading = "Adapters")]
    #[serde(skip)]
    keys: Option<Vec<String>>,
    /// Tokens of the output that is generated at the end for the first validation sample; 0 disables it
    #[arg(long, value_name = "N", default_value_t = 120)]
    #[serde(skip)]
    sample_tokens: usize,
    /// Write the result as JSON
    #[arg(long)]
    #[serde(skip)]
    json: bool,
    #[command(flatten)]
    #[serde(skip)]
    device: DeviceArg,
    /// Accepted because commands for mlx-lm have them
    #[arg(long, hide = true)]
    #[serde(skip)]
    report_to: Option<String>,
    #[arg(long, hide = true)]
    #[serde(skip)]
    project_name: Option<String>,
    #[arg(long, hide = true)]
    #[serde(skip)]
    clear_cache_threshold: Option<String>,
}

/// The settings that a configuration file has, too; those that are not given are left out.
#[derive(clap::Args, Serialize)]
struct Flags {
    /// Folder of the model
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<PathBuf>,
    /// Folder with train.jsonl (valid.jsonl, test.jsonl), or a file of training data
    #[arg(long, value_name = "PATH")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    /// Train; the default unless --test is given alone
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    train: bool,
    /// What to train: lora, dora or full [default: lora]
    #[arg(long, value_name = "TYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    fine_tune_type: Option<FineTuneType>,
    /// adam, adamw, sgd, muon or adafactor [default: adam]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    optimizer: Option<OptimizerKind>,
    /// Compute the loss on the answers of the assistant alone, every turn
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    mask_prompt: bool,
    /// Number of layers to train, from the last one; -1 trains all [default: 16]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    num_layers: Option<i64>,
    /// Samples in a batch [default: 4]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_size: Option<usize>,
    /// Number of batches to train on [default: 1000]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    iters: Option<u64>,
    /// Number of validation batches; -1 takes all [default: 25]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    val_batches: Option<i64>,
    /// Learning rate [default: 1e-5]
    #[arg(long, value_parser = finite::<f64>, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    learning_rate: Option<f64>,
    /// Batches between reports of the training loss [default: 10]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    steps_per_report: Option<u64>,
    /// Batches between validations [default: 200]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    steps_per_eval: Option<u64>,
    /// Batches whose gradients are averaged, by their targets, before a step [default: 1]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    grad_accumulation_steps: Option<u64>,
    /// Adapter file to begin with
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    #[serde(skip_serializing_if = "Option::is_none")]
    resume_adapter_file: Option<PathBuf>,
    /// Folder of the adapter [default: adapters]
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter_path: Option<PathBuf>,
    /// Batches between checkpoints [default: 100]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    save_every: Option<u64>,
    /// Measure the loss of the test data: after the training, or of the adapter in --adapter-path
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    test: bool,
    /// Number of test batches; -1 takes all [default: 500]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    test_batches: Option<i64>,
    /// Maximum length of a sample in tokens [default: 2048]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_seq_length: Option<usize>,
    /// Recompute layers in the backward pass; chosen by itself where a step would not fit the memory
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    grad_checkpoint: bool,
    /// Seed of new adapters and of the order of samples [default: 0]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    /// What to do with samples longer than --max-seq-length: cut or skip [default: cut]
    #[arg(long, value_name = "HOW", value_parser = ["cut", "skip"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    long_samples: Option<String>,
    /// Order of the samples: random, or that of the file [default: random]
    #[arg(long, value_name = "ORDER", value_parser = ["random", "file"])]
    #[serde(skip_serializing_if = "Option::is_none")]
    sample_order: Option<String>,
    /// Loss: sft (samples), or dpo or orpo (pairs of a `chosen` and a `rejected` answer) [default: sft]
    #[arg(long, value_name = "LOSS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    loss: Option<LossKind>,
    /// Temperature of dpo, or weight of orpo's odds ratio [default: 0.1]
    #[arg(long, value_parser = finite::<f32>, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    beta: Option<f32>,
    /// Maximum norm of the gradient; 0 disables clipping [default: 0]
    #[arg(long, value_parser = finite::<f32>, value_name = "X")]
    #[serde(skip_serializing_if = "Option::is_none")]
    grad_clip: Option<f32>,
    /// Dtype of activations: f32, or bf16, which halves their memory. What is trained keeps f32 masters [default: f32]
    #[arg(long, value_name = "DTYPE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<TrainDtype>,
}

/// JSON, through which flags become settings, has no NaN and no infinity.
fn finite<T: FromStr<Err = ParseFloatError> + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    let number: T = text.parse().map_err(|error: ParseFloatError| error.to_string())?;
    if number.into().is_finite() { Ok(number) } else { Err("expected a finite number".to_owned()) }
}

impl Args {
    /// The settings: the configuration file, overridden by flags.
    fn settings(&self) -> anyhow::Result<FinetuneSettings> {
        let mut keys: Map<String, Value> = match &self.config {
            Some(path) => FinetuneSettings::read_file(path)?,
            None => Map::new(),
        };
        if let Value::Object(flags) = serde_json::to_value(self)? {
            keys.extend(flags);
        }
        let mut lora = match keys.remove("lora_parameters") {
            Some(Value::Object(lora)) => lora,
            _ => Map::new(),
        };
        lora.extend(self.rank.map(|rank| ("rank".to_owned(), rank.into())));
        lora.extend(self.scale.map(|scale| ("scale".to_owned(), scale.into())));
        lora.extend(self.dropout.map(|dropout| ("dropout".to_owned(), dropout.into())));
        lora.extend(self.keys.clone().map(|names| ("keys".to_owned(), names.into())));
        if !lora.is_empty() {
            keys.insert("lora_parameters".to_owned(), lora.into());
        }
        let mut settings = FinetuneSettings::from_keys(keys)?;
        settings.train |= !settings.test;
        for (flag, path) in [("--model", &settings.model), ("--data", &settings.data)] {
            if path.as_os_str().is_empty() {
                bail!("{flag} is missing; give it as a flag or in the file of --config");
            }
        }
        Ok(settings)
    }
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    let mut settings = args.settings()?;
    settings.model = find_model(&settings.model)?;
    if !settings.data.exists() {
        bail!("--data {}: there is no such file or folder, and nothing is downloaded", settings.data.display());
    }
    let device = args.device.open()?;
    let mut screen = Screen::new();
    if !settings.train {
        let loss = test(&settings, &device, &mut |event| screen.show(event))?;
        match args.json {
            true => writeln!(out, "{}", json!({"test_loss": loss, "test_perplexity": loss.exp()}))?,
            false => writeln!(out, "test loss   {loss:.3}, perplexity {:.3}", loss.exp())?,
        }
        return Ok(());
    }
    let start = if args.resume { Start::Resume } else { Start::Begin };
    let mut run = Finetune::prepare(settings, start, &device, &mut |event| screen.show(event))?;
    screen.describe(&run);
    let status = run.run(&mut |event| screen.show(event))?;
    screen.bar.finish_and_clear();
    let folder = run.settings.adapter_path.display().to_string();
    if status == RunStatus::Stopped {
        let step = run.trainer.step();
        match args.json {
            true => writeln!(out, "{}", json!({"event": "stopped", "step": step, "adapter_path": folder}))?,
            false => writeln!(out, "stopped after step {step}; saved in {folder}, --resume continues it")?,
        }
        return Err(Interrupted.into());
    }
    let val_loss = run.trainer.metrics().iter().rev().find_map(|row| row.val_loss);
    if let Some(loss) = val_loss.filter(|_| !args.json) {
        writeln!(out, "validation  {loss:.3} nats per token")?;
    }
    let test_loss = match run.settings.test {
        true => Some(run.test_loss(&mut |event| screen.show(event))?),
        false => None,
    };
    if let Some(loss) = test_loss.filter(|_| !args.json) {
        writeln!(out, "test loss   {loss:.3}, perplexity {:.3}", loss.exp())?;
    }
    let output = sample(&run, args.sample_tokens)?;
    run.write_report(test_loss, output.as_slice())?;
    if args.json {
        let result = json!({
            "adapter_path": folder,
            "steps": run.trainer.step(),
            "val_loss": val_loss,
            "test_loss": test_loss,
            "test_perplexity": test_loss.map(f64::exp),
            "prompt": output.as_ref().map(|(prompt, _)| prompt),
            "output": output.as_ref().map(|(_, text)| text),
        });
        writeln!(out, "{result}")?;
        return Ok(());
    }
    writeln!(out, "adapter     {folder}\nreport      {folder}/report.md")?;
    if let Some((_, text)) = output {
        writeln!(out, "\nOutput for the first validation sample:\n\n{text}")?;
    }
    Ok(())
}

/// The prompt of the first validation sample and what the model answers.
fn sample(run: &Finetune, tokens: usize) -> anyhow::Result<Option<(String, String)>> {
    let samples = if run.data.validation.samples.is_empty() { &run.data.train } else { &run.data.validation };
    let Some(sample) = samples.samples.first().filter(|_| tokens > 0) else { return Ok(None) };
    let start = sample.answers.first().map_or(0, |answer| answer.start);
    // without --mask-prompt all is an answer
    let end = if start > 0 { start } else { sample.tokens.len().div_ceil(2) };
    let prompt = &sample.tokens[..end];
    let options = GenerateOptions { max_tokens: tokens, ..GenerateOptions::default() };
    let mut session = Session::new(run.trainer.model())?.without_snapshots();
    let generation = session.generate(Some(&run.tokenizer), prompt, &options)?;
    Ok(Some((run.tokenizer.decode(prompt)?, generation.text)))
}

/// The display of a run: a bar on a terminal, lines elsewhere.
struct Screen {
    bar: ProgressBar,
    terminal: bool,
    /// From the first step on: a signal asks the run for its checkpoint. Before it there is nothing to save.
    stoppable: Option<Stoppable>,
    started: Instant,
    first: u64,
    iters: u64,
    validated: Option<f64>,
}

impl Screen {
    fn new() -> Self {
        Screen {
            bar: ProgressBar::hidden(),
            terminal: std::io::stderr().is_terminal(),
            stoppable: None,
            started: Instant::now(),
            first: 0,
            iters: 0,
            validated: None,
        }
    }

    fn describe(&mut self, run: &Finetune) {
        let Finetune { trainer, settings, data, memory, parameters: [trained, all], .. } = run;
        let (train, validation) = (&data.train, &data.validation);
        note!(
            "data      {} samples, {} tokens, {} in the loss; {} validation samples",
            train.len(),
            count(train.tokens() as f64),
            count(train.target_count() as f64),
            validation.len(),
        );
        if train.long > 0 {
            let (long, most) = (train.long, settings.max_seq_length);
            say!("warning: {long} samples are longer than {most} tokens (--max-seq-length): see --long-samples");
        }
        if train.without_target > 0 {
            say!("warning: {} samples have no token that counts in the loss and are left out", train.without_target);
        }
        let (trained, all) = (*trained as f64, *all as f64);
        let share = 100.0 * trained / all.max(1.0);
        note!("trained   {}: {} of {} elements, {share:.3} %", settings.fine_tune_type, count(trained), count(all));
        let recomputed = if settings.grad_checkpoint { ", layers recomputed" } else { "" };
        let fit =
            memory.tokens_that_fit().map_or(String::new(), |tokens| format!("; {} tokens fit", count(tokens as f64)));
        note!(
            "memory    {}: weights {}, optimizer {}, {} a token, {} tokens at most in a batch{recomputed}{fit}",
            bytes(memory.total()),
            bytes(memory.weights),
            bytes(memory.optimizer()),
            bytes(memory.per_token),
            memory.tokens,
        );
        let iters = trainer.settings().iters;
        note!(
            "run       {iters} steps of {} samples, {}, seed {}",
            settings.batch_size * settings.grad_accumulation_steps as usize,
            settings.optimizer,
            settings.seed
        );
        (self.started, self.first, self.iters) = (Instant::now(), trainer.step(), iters);
        if self.terminal {
            self.bar = bar(iters, trainer.step());
        }
    }

    fn show(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Preparing(what) => note!("{what} …"),
            Event::Ready(_) => self.stoppable = Some(Stoppable::new()),
            Event::Stepped { step, .. } => self.bar.set_position(step),
            Event::Measured(row) => self.measured(row),
            _ => {}
        }
        self.stoppable.as_ref().map_or(ControlFlow::Continue(()), Stoppable::check)
    }

    fn measured(&mut self, row: &MetricsRow) {
        if let Some(loss) = row.val_loss {
            self.validated = Some(loss);
            if !self.terminal {
                say!("step {}/{} · validation {loss:.3}", row.step, self.iters);
            }
            return;
        }
        let mut text = format!("loss {:.3}", row.loss.unwrap_or(f64::NAN));
        text += &self.validated.map_or(String::new(), |loss| format!(" · validation {loss:.3}"));
        let speed = count(row.tokens_per_second.unwrap_or(0.0));
        text += &format!(" · {speed} tokens/s · {}", bytes(row.peak_memory.unwrap_or(0)));
        if self.terminal {
            self.bar.set_message(text);
            return;
        }
        let (done, left) = (row.step - self.first, self.iters.saturating_sub(row.step));
        if left > 0 {
            let time = self.started.elapsed().as_secs_f64() / done.max(1) as f64 * left as f64;
            text += &format!(" · {} left", seconds(time));
        }
        say!("step {}/{} · {text}", row.step, self.iters);
    }
}
