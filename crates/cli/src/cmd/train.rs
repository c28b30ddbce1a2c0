use super::DeviceArg;
use crate::cmd::generate::write_stream;
use crate::output::{Interrupted, bar, bytes, count, listing, say, seconds};
use crate::signals::Stoppable;
use alluvium::lm::{GenerateOptions, Session};
use alluvium::ops::Sampling;
use alluvium::train::data::Task;
use alluvium::train::{
    DataSource, Event, MetricsRow, Overrides, Preset, Run, RunPaths, RunStatus, Settings, TextSummary, Trainer,
};
use indicatif::ProgressBar;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

/// Train a model on text files, or on a synthetic memory task
#[derive(clap::Args)]
#[command(after_help = presets())]
pub(crate) struct Args {
    /// Text files and folders; binary files and those named in .gitignore are left out. A resumed run knows its own
    #[arg(long, required_unless_present_any = ["resume", "task"], num_args = 1.., value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Train on a synthetic memory task instead of text. Uses the task's own defaults; --preset and --val-split are
    /// ignored
    #[arg(long, value_enum, conflicts_with_all = ["data", "resume", "tokenizer", "preset"], value_name = "TASK")]
    task: Option<Task>,
    /// Folder for the model, the state of the run, metrics.jsonl and loss.svg
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Resume the run in --out at its last checkpoint; the result is bit-identical to that of a run without a stop
    #[arg(long)]
    resume: bool,
    /// Existing tokenizer.json, or a folder with one [default: train one on the text]
    #[arg(long, value_name = "PATH", conflicts_with = "resume")]
    tokenizer: Option<PathBuf>,
    /// TOML file with any of the settings below (names with underscores); flags override it
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Prompt of the sample that is generated at the end [default: the start of a line of the validation text]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    sample_prompt: Option<String>,
    /// Tokens of that sample; 0 disables it
    #[arg(long, value_name = "N", default_value_t = 120)]
    sample_tokens: usize,
    #[command(flatten)]
    device: DeviceArg,
    #[command(flatten, next_help_heading = "Settings")]
    overrides: Overrides,
}

pub(crate) fn run(args: Args, out: &mut impl Write) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let overrides = match &args.config {
        Some(path) => Overrides::read(path)?.overlaid(args.overrides),
        None => args.overrides,
    };
    let source = match args.task {
        Some(task) => Some(DataSource::Task(task)),
        None => (!args.data.is_empty()).then_some(DataSource::Text(args.data)),
    };
    let paths = RunPaths { source, tokenizer: args.tokenizer, out: args.out };
    let mut screen = Screen::new();
    let mut observe = |event: Event<'_>| screen.show(event);
    let Run { mut trainer, text } = match (args.resume, args.task) {
        (true, _) => Run::resume(&paths, |before| overrides.applied(before.clone()), &device, &mut observe)?,
        (false, Some(task)) => Run::begin(&paths, overrides.settings_for(task)?, &device, &mut observe)?,
        (false, None) => Run::begin(&paths, overrides.settings()?, &device, &mut observe)?,
    };
    screen.describe(&trainer, text.as_ref(), args.task);
    let status = trainer.run(&mut |event| screen.show(event))?;
    screen.bar.finish_and_clear();
    let folder = paths.out.display();
    if status == RunStatus::Stopped {
        writeln!(out, "stopped after step {}; saved in {folder}, --resume continues it", trainer.step())?;
        return Err(Interrupted.into());
    }
    summarize(&trainer, text.as_ref(), out)?;
    writeln!(out, "model       {folder}\ncurve       {folder}/loss.svg")?;
    let prompt = args.sample_prompt.or_else(|| text.and_then(|text| text.sample_prompt));
    sample(&trainer, prompt, args.sample_tokens, out)
}

/// The settings of each preset, one column each.
fn presets() -> String {
    let [tiny, small, base] = [Preset::Tiny, Preset::Small, Preset::Base].map(|preset| Settings::of(preset).listing());
    let mut rows = vec![["  --preset", "tiny (default)", "small", "base"].map(str::to_owned)];
    for ((tiny, small), base) in tiny.into_iter().zip(small).zip(base) {
        rows.push([format!("  {}", tiny.0), tiny.1, small.1, base.1]);
    }
    let mut text = Vec::new();
    // memory takes every byte
    let _ = listing(&mut text, &rows);
    format!(
        "Settings of the presets (--iters alone also sets warmup, to a twentieth):\n{}",
        String::from_utf8_lossy(&text)
    )
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
    last: Option<MetricsRow>,
    validated: Option<MetricsRow>,
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
            last: None,
            validated: None,
        }
    }

    fn describe(&mut self, trainer: &Trainer, text: Option<&TextSummary>, task: Option<Task>) {
        if let Some(text) = text {
            let (files, size, binary) = (text.files, bytes(text.bytes), text.skipped.binary);
            let mut left_out = format!("binary files left out: {binary}");
            if text.skipped.repeated > 0 {
                left_out += &format!(", files given twice: {}", text.skipped.repeated);
            }
            if text.skipped.broken_links > 0 {
                left_out += &format!(", broken links: {}", text.skipped.broken_links);
            }
            say!("text      {files} files, {size} ({left_out})");
            let (trained, validation) = (text.train_tokens as f64, text.validation_tokens as f64);
            say!("tokens    {} to train on, {} for validation", count(trained), count(validation));
        }
        if let Some(task) = task {
            say!("task      {}: {} keys, each written {}×", task.name(), task.keys(), task.writes());
        }
        let (settings, step) = (trainer.settings(), trainer.step());
        say!(
            "model     {} parameters, {} layers × {}, vocabulary {}",
            count(trainer.parameter_count() as f64),
            settings.architecture.num_hidden_layers,
            settings.architecture.hidden_size,
            settings.architecture.vocab_size
        );
        say!(
            "run       {} steps of {} × {} tokens, {}, learning rate {}, seed {}",
            settings.iters,
            settings.batch_size * settings.grad_accumulation_steps,
            settings.max_seq_length,
            settings.optimizer,
            settings.learning_rate,
            settings.seed
        );
        if step >= settings.iters {
            say!("the run has all its steps: {step} of {}; --iters adds more", settings.iters);
        }
        (self.started, self.first, self.iters) = (Instant::now(), step, settings.iters);
        if self.terminal {
            self.bar = bar(settings.iters, step);
        }
    }

    fn show(&mut self, event: Event<'_>) -> ControlFlow<()> {
        match event {
            Event::Preparing(what) => say!("{what} …"),
            Event::Ready(_) => self.stoppable = Some(Stoppable::new()),
            Event::Stepped { step, .. } => self.bar.set_position(step),
            Event::Measured(row) => self.measured(row),
            _ => {}
        }
        self.stoppable.as_ref().map_or(ControlFlow::Continue(()), Stoppable::check)
    }

    fn measured(&mut self, row: &MetricsRow) {
        let is_validation = row.val_loss.is_some();
        *(if is_validation { &mut self.validated } else { &mut self.last }) = Some(row.clone());
        let Some(last) = &self.last else { return };
        let mut text = format!("loss {:.3}", last.loss.unwrap_or(f64::NAN));
        if let Some(MetricsRow { val_loss: Some(loss), accuracy, .. }) = self.validated {
            text += &format!(" · validation {loss:.3}");
            text += &accuracy.map_or(String::new(), |accuracy| format!(" · accuracy {:.1} %", 100.0 * accuracy));
        }
        let speed = count(last.tokens_per_second.unwrap_or(0.0));
        text += &format!(" · {speed} tokens/s · {}", bytes(last.peak_memory.unwrap_or(0)));
        if self.terminal {
            self.bar.set_message(text);
        } else if !is_validation {
            let (done, left) = (row.step - self.first, self.iters - row.step);
            if left > 0 {
                let time = self.started.elapsed().as_secs_f64() / done.max(1) as f64 * left as f64;
                text += &format!(" · {} left", seconds(time));
            }
            say!("step {}/{} · {text}", row.step, self.iters);
        }
    }
}

/// The last validation of a run.
fn summarize(trainer: &Trainer, text: Option<&TextSummary>, out: &mut impl Write) -> anyhow::Result<()> {
    let Some(row) = trainer.metrics().iter().rev().find(|row| row.val_loss.is_some()) else { return Ok(()) };
    let loss = row.val_loss.unwrap_or(f64::NAN);
    match (row.accuracy, text.and_then(|text| text.unigram_loss)) {
        (Some(accuracy), _) => {
            writeln!(out, "validation  accuracy {:.1} %, {loss:.3} nats per answer", 100.0 * accuracy)?;
        }
        (None, Some(unigram)) => {
            writeln!(out, "validation  {loss:.3} nats per token; token frequencies alone reach {unigram:.3}")?;
        }
        (None, None) => writeln!(out, "validation  {loss:.3} nats per token")?,
    }
    Ok(())
}

/// Generates a sample with the trained model.
fn sample(trainer: &Trainer, prompt: Option<String>, tokens: usize, out: &mut impl Write) -> anyhow::Result<()> {
    let Some(tokenizer) = trainer.tokenizer().filter(|_| tokens > 0) else { return Ok(()) };
    let prompt = prompt.unwrap_or_else(|| "The ".to_owned());
    writeln!(out, "\nSample:\n")?;
    let sampling = Sampling { temperature: 0.7, top_k: 0, top_p: 0.95, min_p: 0.0 };
    let seed = trainer.settings().seed;
    let options = GenerateOptions { max_tokens: tokens, sampling, seed, ..GenerateOptions::default() };
    write!(out, "{prompt}")?;
    out.flush()?;
    let ids = tokenizer.encode(&prompt)?;
    let mut session = Session::new(trainer.model())?.without_snapshots();
    write_stream(session.stream(Some(tokenizer), &ids, &options)?, out)?;
    writeln!(out)?;
    Ok(())
}
