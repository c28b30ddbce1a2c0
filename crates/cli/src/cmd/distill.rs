use super::DeviceArg;
use super::dwq::DataArgs;
use super::hub::find_model;
use crate::output::{Interrupted, bar, count, note, say};
use crate::signals::Stoppable;
use alluvium::train::distill::{DistillEvent, Distilled, distill};
use anyhow::Context;
use indicatif::ProgressBar;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Distill a smaller model: train a plain student on the probabilities of a teacher with the same vocabulary
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the teacher, plain or quantized
    #[arg(long, short, value_name = "DIR")]
    model: PathBuf,
    /// Folder of the plain student, all of whose parameters are trained; it is left as it is
    #[arg(long, value_name = "DIR")]
    student: PathBuf,
    /// New folder of the trained student; it must not exist
    #[arg(long, value_name = "DIR", default_value = "mlx_model")]
    mlx_path: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Adam's learning rate
    #[arg(long, value_name = "X", default_value_t = 1e-5)]
    learning_rate: f32,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    args.data.check()?;
    let folders = [find_model(&args.model)?, find_model(&args.student)?, args.mlx_path.clone()];
    let settings = args.data.settings(folders, args.learning_rate);
    let device = args.device.open()?;
    let mut screen = Screen::new(args.data.report.as_deref())?;
    let result = distill(&settings, &device, &mut |event| screen.show(&event));
    screen.finish()?;
    match result? {
        Some(distilled) => screen.summary((&args.mlx_path, args.data.json), &distilled, out),
        None => Err(Interrupted.into()),
    }
}

/// Steps between lines where there is no terminal, as in mlx-lm.
const STEPS_PER_REPORT: usize = 20;

/// The display of a distillation, and its report.
pub(crate) struct Screen {
    bar: ProgressBar,
    report: Option<File>,
    failed: Option<std::io::Error>,
    stoppable: Stoppable,
    stopped: bool,
    /// Losses since the last line, by tokens.
    sum: [f64; 2],
}

impl Screen {
    pub(crate) fn new(report: Option<&Path>) -> anyhow::Result<Self> {
        let create = |path: &Path| {
            File::create_new(path).with_context(|| format!("--report {}: cannot create the file", path.display()))
        };
        Ok(Screen {
            bar: ProgressBar::hidden(),
            report: report.map(create).transpose()?,
            failed: None,
            stoppable: Stoppable::new(),
            stopped: false,
            sum: [0.0; 2],
        })
    }

    /// Whether the run was asked to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub(crate) fn show(&mut self, event: &DistillEvent<'_>) -> ControlFlow<()> {
        match *event {
            DistillEvent::Preparing(what) => note!("{what} …"),
            DistillEvent::Targets { done, of } => self.advance("targets", done, of),
            DistillEvent::Stepped { step, of, loss, tokens } => self.stepped(step, of, [loss, tokens as f64]),
            DistillEvent::Validated { step, loss } => {
                self.write(&serde_json::json!({"step": step, "val_loss": loss}));
                say!("validation after step {step}: {loss:.4} nats per token");
            }
            _ => {}
        }
        let wish = self.stoppable.check();
        self.stopped |= wish.is_break();
        wish
    }

    fn stepped(&mut self, step: usize, of: usize, [loss, tokens]: [f64; 2]) {
        self.write(&serde_json::json!({"step": step, "loss": loss, "tokens": tokens}));
        self.sum = [self.sum[0] + loss * tokens, self.sum[1] + tokens];
        self.bar.set_message(format!("loss {loss:.4}"));
        if step.is_multiple_of(STEPS_PER_REPORT) || step == of {
            if !std::io::stderr().is_terminal() {
                say!("step {step}/{of} · loss {:.4}", self.sum[0] / self.sum[1]);
            }
            self.sum = [0.0; 2];
        }
        self.advance("steps", step, of);
    }

    fn advance(&mut self, what: &str, done: usize, of: usize) {
        if done == 1 && std::io::stderr().is_terminal() {
            self.bar = bar(of as u64, 0);
        } else if what == "targets" && done == of {
            note!("targets   {of} batches");
        }
        self.bar.set_position(done as u64);
    }

    /// A line of the report; the first failure is kept for the end.
    fn write(&mut self, line: &serde_json::Value) {
        if let Some(file) = &mut self.report
            && let Err(error) = writeln!(file, "{line}")
        {
            self.failed.get_or_insert(error);
        }
    }

    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        self.bar.finish_and_clear();
        match self.failed.take() {
            Some(error) => Err(error).context("cannot write the file of --report"),
            None => Ok(()),
        }
    }

    /// Writes the result for a folder, as lines or as JSON.
    pub(crate) fn summary(
        &self,
        (folder, json): (&Path, bool),
        distilled: &Distilled,
        out: &mut impl Write,
    ) -> anyhow::Result<()> {
        let [before, after] = distilled.validation;
        let bits = distilled.model.bits_per_weight();
        if after > before {
            say!("warning: the model has become worse; lower --learning-rate");
        }
        if json {
            let result = serde_json::json!({
                "path": folder.display().to_string(),
                "val_loss_before": before,
                "val_loss": after,
                "trained": distilled.trained,
                "bits_per_weight": bits,
            });
            writeln!(out, "{result}")?;
            return Ok(());
        }
        writeln!(out, "validation  {before:.4} nats per token before, {after:.4} after")?;
        writeln!(out, "trained     {} elements", count(distilled.trained as f64))?;
        writeln!(out, "model       {}, {bits:.3} bits per weight", folder.display())?;
        Ok(())
    }
}
