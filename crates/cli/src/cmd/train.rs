use super::DeviceArg;
use super::memory::{self, MemoryArg};
use super::model::described;
use super::report::{Report, Timing};
use super::samples::{Sample, Sampler, keep};
use crate::output::{Interrupted, bar, bytes, count, listing, note, say, seconds, shows_progress, spinner};
use crate::signals::Stoppable;
use alluvium::Device;
use alluvium::lm::Tokenizer;
use alluvium::train::data::Task;
use alluvium::train::{
    DataSource, Event, MemoryEstimate, MetricsRow, Overrides, Preset, Run, RunPaths, RunStatus, Settings, TextSummary,
    Trainer,
};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Train a model on text files, or on a synthetic memory task
#[derive(clap::Args)]
#[command(after_help = presets())]
pub(crate) struct Args {
    /// Text files and folders; binary files, hidden ones and those named in .gitignore are left out. A resumed run knows
    /// its own
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
    /// Prompt of the samples that are generated [default: the start of a line of the validation text]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    sample_prompt: Option<String>,
    /// Write lines of JSON: each measurement and sample as it is made, and a summary at the end
    #[arg(long)]
    json: bool,
    /// Tokens of the sample at each validation, which takes three seconds at most; 0 disables these samples
    #[arg(long, value_name = "N", default_value_t = 24)]
    eval_sample_tokens: usize,
    /// Tokens of the sample at the end; 0 disables it
    #[arg(long, value_name = "N", default_value_t = 120)]
    sample_tokens: usize,
    #[command(flatten)]
    device: DeviceArg,
    #[command(flatten)]
    memory: MemoryArg,
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
    if !args.resume {
        let settings = match args.task {
            Some(task) => overrides.settings_for(task)?,
            None => overrides.settings()?,
        };
        fits(settings, paths.tokenizer.as_deref(), &device, &args.memory)?;
    }
    let mut screen = Screen::new(out, args.json, args.eval_sample_tokens);
    let mut observe = |event: Event<'_>| screen.show(&event);
    let Run { mut trainer, text, settings } = match (args.resume, args.task) {
        (true, _) => Run::resume(&paths, |before| overrides.applied(before.clone()), &device, &mut observe)?,
        (false, Some(task)) => Run::begin(&paths, overrides.settings_for(task)?, &device, &mut observe)?,
        (false, None) => Run::begin(&paths, overrides.settings()?, &device, &mut observe)?,
    };
    let prompt = args.sample_prompt.or_else(|| text.as_ref().and_then(|text| text.sample_prompt.clone()));
    let sampler = Sampler { prompt: prompt.unwrap_or_else(|| "The ".to_owned()), seed: settings.seed };
    screen.describe((&trainer, &settings, &described(&device)), text.as_ref(), args.task);
    screen.sampler = Some(sampler.clone());
    let (started, first) = (Instant::now(), trainer.step());
    let status = trainer.run(&mut |event| screen.show(&event))?;
    let timing = Timing { seconds: started.elapsed().as_secs_f64(), first_step: first };
    let (mut out, samples) = screen.finish()?;
    let folder = paths.out.display();
    if status == RunStatus::Stopped {
        let step = trainer.step();
        let line = match args.json {
            true => json!({"event": "stopped", "step": step, "out": folder.to_string()}).to_string(),
            false => format!("stopped after step {step}; saved in {folder}, --resume continues it"),
        };
        writeln!(out, "{line}")?;
        return Err(Interrupted.into());
    }
    let (trainer, settings, text) = (&trainer, &settings, text.as_ref());
    let report = Report { trainer, settings, text, device: &device, timing, samples: &samples };
    if args.json {
        writeln!(out, "{}", report.json(&paths.out))?;
        return report.write(&paths.out, None);
    }
    report.summarize(&mut out)?;
    writeln!(out, "model       {folder}\ncurve       {folder}/loss.svg\nreport      {folder}/report.md")?;
    let sample = sampler.write(trainer, args.sample_tokens, &mut out)?;
    report.write(&paths.out, sample.as_ref())
}

/// Says how many parameters a run has and what memory it takes, and refuses one that does not fit.
fn fits(mut settings: Settings, tokenizer: Option<&Path>, device: &Device, arg: &MemoryArg) -> anyhow::Result<()> {
    if let Some(path) = tokenizer {
        settings.architecture.vocab_size = Tokenizer::load(path)?.vocab_size();
    }
    let estimate = settings.memory()?;
    let MemoryEstimate { parameters, weights, masters, .. } = estimate;
    let (model, state) = (count(parameters as f64), bytes(estimate.optimizer()));
    let kinds = if masters > 0 { "gradients, moments and masters" } else { "gradients and moments" };
    note!("memory    {model} parameters, at most {} of weights,", bytes(weights));
    note!("          {state} of {kinds}, about {} of activations", bytes(estimate.activations()));
    let remedy = "make the model, --batch-size or --max-seq-length smaller, or add --grad-checkpoint";
    memory::check(estimate.total(), device, remedy, arg)
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
struct Screen<'a> {
    bar: ProgressBar,
    terminal: bool,
    /// From the first step on: a signal asks the run for its checkpoint. Before it there is nothing to save.
    stoppable: Option<Stoppable>,
    started: Instant,
    first: u64,
    iters: u64,
    last: Option<MetricsRow>,
    validated: Option<MetricsRow>,
    /// Where lines of JSON go.
    out: &'a mut dyn Write,
    json: bool,
    /// What a line of JSON could not be written for.
    failure: Option<io::Error>,
    sampler: Option<Sampler>,
    /// Tokens of a sample.
    tokens: usize,
    samples: Vec<Sample>,
}

impl<'a> Screen<'a> {
    fn new(out: &'a mut dyn Write, json: bool, tokens: usize) -> Self {
        Screen {
            bar: ProgressBar::hidden(),
            terminal: shows_progress(),
            stoppable: None,
            started: Instant::now(),
            first: 0,
            iters: 0,
            last: None,
            validated: None,
            out,
            json,
            failure: None,
            sampler: None,
            tokens,
            samples: Vec::new(),
        }
    }

    fn describe(&mut self, run: (&Trainer, &Settings, &str), text: Option<&TextSummary>, task: Option<Task>) {
        let (trainer, settings, device) = run;
        self.bar.finish_and_clear();
        if let Some(text) = text {
            let (files, size, binary) = (text.files, bytes(text.bytes), text.skipped.binary);
            let mut left_out = format!("binary files left out: {binary}");
            if text.skipped.repeated > 0 {
                left_out += &format!(", files given twice: {}", text.skipped.repeated);
            }
            if text.skipped.broken_links > 0 {
                left_out += &format!(", broken links: {}", text.skipped.broken_links);
            }
            note!("text      {files} files, {size} ({left_out})");
            if !text.undecodable.is_empty() {
                let shown: Vec<String> =
                    text.undecodable.iter().take(3).map(|path| path.display().to_string()).collect();
                let more = text.undecodable.len() - shown.len();
                let more = if more == 0 { String::new() } else { format!(" and {more} more") };
                note!("          not UTF-8, so left out: {}{more}", shown.join(", "));
            }
            let (trained, validation) = (text.train_tokens as f64, text.validation_tokens as f64);
            note!("tokens    {} to train on, {} for validation", count(trained), count(validation));
        }
        if let Some(task) = task {
            note!("task      {}: {} keys, each written {}×", task.name(), task.keys(), task.writes());
        }
        let step = trainer.step();
        note!(
            "model     {} parameters, {} layers × {}, vocabulary {}",
            count(trainer.parameter_count() as f64),
            settings.architecture.num_hidden_layers,
            settings.architecture.hidden_size,
            settings.architecture.vocab_size
        );
        note!(
            "run       {} steps of {} × {} tokens, {}, learning rate {}, seed {}",
            settings.iters,
            settings.batch_size * settings.grad_accumulation_steps,
            settings.max_seq_length,
            settings.optimizer,
            settings.learning_rate,
            settings.seed
        );
        note!("device    {device}");
        if step >= settings.iters {
            note!("the run has all its steps: {step} of {}; --iters adds more", settings.iters);
        }
        (self.started, self.first, self.iters) = (Instant::now(), step, settings.iters);
        self.bar = bar(settings.iters, step);
    }

    fn show(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        match *event {
            Event::Preparing(what) => {
                self.bar.finish_and_clear();
                note!("{what} …");
                self.bar = spinner(what);
            }
            Event::Ready(_) => self.stoppable = Some(Stoppable::new()),
            Event::Stepped { step, .. } => {
                self.bar.set_position(step);
                self.bar.set_message(self.line(step, Width::Bar));
            }
            Event::Evaluated { done, of } if done < of => {
                self.bar.set_message(format!("validation, batch {done} of {of}"));
            }
            Event::Measured(row) => self.measured(row),
            // the last validation is followed by the sample at the end
            Event::Validated(trainer) if trainer.step() < self.iters => self.sample(trainer),
            _ => {}
        }
        if self.failure.is_some() {
            return ControlFlow::Break(());
        }
        self.stoppable.as_ref().map_or(ControlFlow::Continue(()), Stoppable::check)
    }

    /// Writes a line of JSON.
    fn write(&mut self, event: &str, mut line: Value) {
        if !self.json {
            return;
        }
        line["event"] = event.into();
        let Screen { bar, out, .. } = self;
        if let Err(error) = bar.suspend(|| writeln!(out, "{line}").and_then(|()| out.flush())) {
            self.failure = Some(error);
        }
    }

    fn measured(&mut self, row: &MetricsRow) {
        let is_validation = row.val_loss.is_some();
        self.write(if is_validation { "validation" } else { "report" }, json!(row));
        *(if is_validation { &mut self.validated } else { &mut self.last }) = Some(row.clone());
        if !self.terminal && !is_validation {
            note!("step {}/{} · {}", row.step, self.iters, self.line(row.step, Width::Line));
        }
    }

    /// The state of the run, the most important first: a bar's line is cut to the width of the terminal.
    fn line(&self, step: u64, width: Width) -> String {
        let Some(last) = &self.last else { return String::new() };
        let mut parts = vec![format!("loss {:.3}", last.loss.unwrap_or(f64::NAN))];
        if let Some(MetricsRow { val_loss: Some(loss), accuracy, .. }) = self.validated {
            parts.push(format!("{} {loss:.3}", if width == Width::Bar { "val" } else { "validation" }));
            parts.extend(accuracy.map(|accuracy| format!("accuracy {:.1} %", 100.0 * accuracy)));
        }
        let (done, left) = (step - self.first, self.iters.saturating_sub(step));
        let time = || seconds(self.started.elapsed().as_secs_f64() / done.max(1) as f64 * left as f64);
        let left = (left > 0 && done > 1).then(|| format!("{} left", time()));
        let speed = format!("{} tokens/s", count(last.tokens_per_second.unwrap_or(0.0)));
        let memory = bytes(last.peak_memory.unwrap_or(0));
        match width {
            Width::Bar => parts.extend(left.into_iter().chain([speed])),
            Width::Line => parts.extend([speed, memory].into_iter().chain(left)),
        }
        parts.join(" · ")
    }

    /// Shows what the model writes at a validation.
    fn sample(&mut self, trainer: &Trainer) {
        let Some(sampler) = &self.sampler else { return };
        self.bar.set_message("sample");
        let mut check = || self.stoppable.as_ref().map_or(ControlFlow::Continue(()), Stoppable::check);
        match sampler.glance(trainer, self.tokens, &mut check) {
            Ok(None) => {}
            Ok(Some(sample)) => {
                let Sample { step, prompt, text } = &sample;
                self.bar.suspend(|| note!("sample    at step {step}, after {prompt:?}: {text:?}"));
                self.write("sample", json!({"step": step, "prompt": prompt, "text": text}));
                keep(&mut self.samples, sample);
            }
            Err(error) => {
                self.bar.suspend(|| say!("warning: samples are left out: {error}"));
                self.sampler = None;
            }
        }
    }

    /// Replaces the bar by its last line. Returns the output and the samples.
    ///
    /// # Errors
    /// When a line of JSON could not be written.
    fn finish(self) -> anyhow::Result<(&'a mut dyn Write, Vec<Sample>)> {
        self.bar.finish_and_clear();
        if let (true, Some(last)) = (self.terminal, &self.last) {
            note!("step {}/{} · {}", last.step, self.iters, self.line(self.iters, Width::Line));
        }
        match self.failure {
            Some(error) => Err(error.into()),
            None => Ok((self.out, self.samples)),
        }
    }
}

/// The room for the state of a run.
#[derive(Clone, Copy, PartialEq)]
enum Width {
    /// What is left of a terminal's line beside a bar.
    Bar,
    /// A line of a log.
    Line,
}
