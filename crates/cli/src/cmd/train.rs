use super::DeviceArg;
use crate::cmd::generate::Streamed;
use crate::output::{bar, bytes, count, listing, say, seconds};
use alluvium::Device;
use alluvium::lm::formats::atomic::remove_partials;
use alluvium::lm::nn::Ablation;
use alluvium::lm::{Options, Session};
use alluvium::ops::Sampling;
use alluvium::train::{
    Changes, Drill, Ended, Event, Exercise, Outcome, Places, Record, Score, Settings, Size, Task, Trainer,
};
use anyhow::Context;
use indicatif::ProgressBar;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Train a model on any text, files or folders, or on a task of memory
#[derive(clap::Args)]
#[command(after_help = dial())]
pub(crate) struct Args {
    /// Files and folders of text; binary files and what .gitignore names are left out. A resumed run knows its own
    #[arg(long, required_unless_present_any = ["resume", "task"], num_args = 1.., value_name = "PATH")]
    data: Vec<PathBuf>,
    /// In place of text: sequences of keys and values, each made anew; the settings are those that suit it, flags change
    /// them. What the dial and --held-out set is not asked
    #[arg(long, value_enum, conflicts_with_all = ["data", "resume", "tokenizer", "size"])]
    task: Option<Task>,
    /// Folder for the model, the state of the run, metrics.jsonl and loss.svg
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on with the run in --out: the same bits as if it had never stopped
    #[arg(long)]
    resume: bool,
    /// An existing tokenizer.json, or a folder that has one; otherwise one is trained on the text
    #[arg(long, value_name = "PATH", conflicts_with = "resume")]
    tokenizer: Option<PathBuf>,
    /// A TOML file with any of the settings below (names with underscores); flags win over it
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Text that the trained model continues at the end; the start of a held-out piece when left out
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    sample_prompt: Option<String>,
    /// Tokens of that sample; 0 writes none
    #[arg(long, value_name = "N", default_value_t = 120)]
    sample_tokens: usize,
    #[command(flatten)]
    device: DeviceArg,
    #[command(flatten, next_help_heading = "Settings")]
    changes: Changes,
}

pub(crate) fn run(args: Args, out: &mut impl Write) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let changes = match &args.config {
        Some(path) => Changes::read(path)?.overlaid(args.changes),
        None => args.changes,
    };
    if let Some(task) = args.task {
        return drill(task, &changes, &args.out, &device, out);
    }
    let places = Places { data: args.data, tokenizer: args.tokenizer, out: args.out };
    let stop = stop_on_signal()?;
    let mut screen = Screen::new(stop);
    let mut tell = |event: Event<'_>| {
        screen.show(event);
    };
    let mut trainer = if args.resume {
        Trainer::resume(&places, |before| changes.applied(before.clone()), &device, &mut tell)?
    } else {
        Trainer::begin(&places, changes.settings()?, &device, &mut tell)?
    };
    screen.begin(&trainer);
    let ended = trainer.run(&mut |event| screen.show(event))?;
    screen.bar.finish_and_clear();
    let folder = places.out.display();
    if ended == Ended::Stopped {
        writeln!(out, "stopped after step {}; saved in {folder}, --resume goes on", trainer.step())?;
        return Ok(());
    }
    summary(&trainer, out)?;
    writeln!(out, "model     {folder}\ncurve     {folder}/loss.svg")?;
    sample(&trainer, args.sample_prompt, args.sample_tokens, out)
}

/// Training on a task.
fn drill(task: Task, changes: &Changes, folder: &Path, device: &Device, out: &mut impl Write) -> anyhow::Result<()> {
    let exercise = Exercise { task, settings: changes.settings_for(task)?, ablation: Ablation::None };
    let mut screen = Screen::new(stop_on_signal()?);
    let mut drill = Drill::new(exercise, Some(folder), device)?;
    screen.task(&drill);
    let ended = drill.run(&mut |event| screen.show(event))?;
    screen.bar.finish_and_clear();
    let Score { loss, accuracy } = drill.score()?;
    if ended == Ended::Stopped {
        writeln!(out, "stopped after step {}", drill.step())?;
    }
    writeln!(out, "held out  {:.1} % right, {loss:.3} nats per answer", 100.0 * accuracy)?;
    writeln!(out, "model     {0}\ncurve     {0}/loss.svg", folder.display())?;
    Ok(())
}

/// What `--size` sets, one column each.
fn dial() -> String {
    let [tiny, small, base] = [Size::Tiny, Size::Small, Size::Base].map(|size| Settings::of(size).listing());
    let mut rows = vec![["  --size", "tiny (default)", "small", "base"].map(str::to_owned)];
    for ((tiny, small), base) in tiny.into_iter().zip(small).zip(base) {
        rows.push([format!("  {}", tiny.0), tiny.1, small.1, base.1]);
    }
    let mut text = Vec::new();
    // memory takes every byte
    let _ = listing(&mut text, &rows);
    format!("What the dial sets (--iters alone also sets warmup, to a twentieth):\n{}", String::from_utf8_lossy(&text))
}

/// Ctrl-C and a polite kill ask for a save; the second one ends at once.
fn stop_on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            remove_partials();
            std::process::exit(130);
        }
        say!("\nstopping after this step; once more ends at once");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(stop)
}

/// What a person sees of a run: a bar on a terminal, lines elsewhere.
struct Screen {
    bar: ProgressBar,
    terminal: bool,
    stop: Arc<AtomicBool>,
    started: Instant,
    first: u64,
    iters: u64,
    last: Option<Record>,
    held_out: Option<f64>,
    accuracy: Option<f64>,
}

impl Screen {
    fn new(stop: Arc<AtomicBool>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Screen {
            bar: ProgressBar::hidden(),
            terminal,
            stop,
            started: Instant::now(),
            first: 0,
            iters: 0,
            last: None,
            held_out: None,
            accuracy: None,
        }
    }

    fn begin(&mut self, trainer: &Trainer) {
        let (found, settings) = (&trainer.found, &trainer.settings);
        let (trained, held_out) = trainer.corpus_tokens;
        say!("text      {} files, {} (binary files left out: {})", found.files, bytes(found.bytes), found.binary);
        say!("tokens    {} to train on, {} held out", count(trained as f64), count(held_out as f64));
        self.plan(trainer.parameters(), trainer.step(), settings);
    }

    fn task(&mut self, drill: &Drill) {
        let Exercise { task, settings, .. } = &drill.exercise;
        say!("task      {}: {} keys, each written {}×", task.name(), task.keys(), task.writes());
        self.plan(drill.parameters(), drill.step(), settings);
    }

    fn plan(&mut self, parameters: usize, step: u64, settings: &Settings) {
        say!(
            "model     {} parameters, {} layers × {}, vocabulary {}",
            count(parameters as f64),
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
            say!("the run has all its steps: {} of {}; --iters takes it further", step, settings.iters);
        }
        (self.started, self.first, self.iters) = (Instant::now(), step, settings.iters);
        if self.terminal {
            self.bar = bar(settings.iters, step);
        }
    }

    fn show(&mut self, event: Event<'_>) -> Outcome {
        match event {
            Event::Preparing(what) => say!("{what} …"),
            Event::Stepped { step, .. } => self.bar.set_position(step),
            Event::Measured(record) => self.measured(record),
            _ => {}
        }
        if self.stop.load(Ordering::Relaxed) { Outcome::Stop } else { Outcome::Continue }
    }

    fn measured(&mut self, record: &Record) {
        if record.held_out_loss.is_some() {
            (self.held_out, self.accuracy) = (record.held_out_loss, record.accuracy);
        } else {
            self.last = Some(record.clone());
        }
        let Some(last) = &self.last else { return };
        let mut text = format!("loss {:.3}", last.loss.unwrap_or(f64::NAN));
        if let Some(held_out) = self.held_out {
            text += &format!(" · held out {held_out:.3}");
        }
        if let Some(accuracy) = self.accuracy {
            text += &format!(" · {:.1} % right", 100.0 * accuracy);
        }
        let speed = count(last.tokens_per_second.unwrap_or(0.0));
        text += &format!(" · {speed} tokens/s · {}", bytes(last.peak_memory.unwrap_or(0)));
        if self.terminal {
            self.bar.set_message(text);
        } else if record.held_out_loss.is_none() {
            let (done, left) = (record.step - self.first, self.iters - record.step);
            if left > 0 {
                let time = self.started.elapsed().as_secs_f64() / done.max(1) as f64 * left as f64;
                text += &format!(" · {} left", seconds(time));
            }
            say!("step {}/{} · {text}", record.step, self.iters);
        }
    }
}

fn summary(trainer: &Trainer, out: &mut impl Write) -> anyhow::Result<()> {
    let held_out = trainer.metrics.records.iter().rev().find_map(|r| r.held_out_loss);
    if let (Some(loss), Some(unigram)) = (held_out, trainer.unigram_loss) {
        writeln!(out, "held out  {loss:.3} nats per token; token frequencies alone reach {unigram:.3}")?;
    }
    Ok(())
}

/// A few lines with the model: what it learnt, for a person.
fn sample(trainer: &Trainer, prompt: Option<String>, tokens: usize, out: &mut impl Write) -> anyhow::Result<()> {
    let start = |text: &str| text.lines().find(|line| line.len() > 8).map(|line| line.chars().take(24).collect());
    let prompt = prompt.or_else(|| trainer.found.pieces.iter().find_map(|piece| start(&piece.text)));
    let prompt = prompt.unwrap_or_else(|| "The ".to_owned());
    if tokens == 0 {
        return Ok(());
    }
    writeln!(out, "\nThe model continues what it has not seen:\n")?;
    let sampling = Sampling { temperature: 0.7, top_k: 0, top_p: 0.95, min_p: 0.0 };
    let options = Options { max_tokens: tokens, sampling, seed: trainer.settings.seed, ..Options::default() };
    let mut streamed = Streamed::new(out);
    streamed.write(&prompt)?;
    let ids = trainer.tokenizer.encode(&prompt)?;
    let mut session = Session::new(trainer.model.as_ref())?.for_one_prompt();
    streamed.generate(&mut session, &trainer.tokenizer, &ids, &options)?;
    streamed.write("\n")?;
    Ok(())
}
