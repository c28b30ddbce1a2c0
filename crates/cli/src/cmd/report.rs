//! The report of a run: its last lines, its JSON, and `report.md` in its folder.

use super::memory::cpu_name;
use super::model::described;
use super::samples::Sample;
use crate::output::{bytes, count, seconds};
use alluvium::Device;
use alluvium::lm::formats::write_atomic;
use alluvium::train::{MetricsRow, REPORT, Settings, TextSummary, Trainer};
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

/// The time of a run, since it was begun or resumed.
#[derive(Clone, Copy)]
pub(super) struct Timing {
    pub(super) seconds: f64,
    pub(super) first_step: u64,
}

/// A finished run.
pub(super) struct Report<'a> {
    pub(super) trainer: &'a Trainer,
    pub(super) settings: &'a Settings,
    pub(super) text: Option<&'a TextSummary>,
    pub(super) device: &'a Device,
    pub(super) timing: Timing,
    /// Those of the validations.
    pub(super) samples: &'a [Sample],
}

impl Report<'_> {
    fn last(&self, has: fn(&MetricsRow) -> bool) -> Option<&MetricsRow> {
        self.trainer.metrics().iter().rev().find(|row| has(row))
    }

    fn trained(&self) -> Option<&MetricsRow> {
        self.last(|row| row.loss.is_some())
    }

    fn validated(&self) -> Option<&MetricsRow> {
        self.last(|row| row.val_loss.is_some())
    }

    /// Bits per byte of the validation text: comparable between tokenizers, unlike the loss per token.
    fn bits_per_byte(&self) -> Option<f64> {
        let text = self.text.filter(|text| text.validation_bytes > 0)?;
        let loss = self.validated()?.val_loss?;
        Some(loss / std::f64::consts::LN_2 * text.validation_tokens as f64 / text.validation_bytes as f64)
    }

    /// Writes the last losses and the time.
    pub(super) fn summarize(&self, out: &mut impl Write) -> std::io::Result<()> {
        if let Some(row) = self.trained() {
            let (loss, tokens) = (row.loss.unwrap_or(f64::NAN), count(row.tokens as f64));
            writeln!(
                out,
                "training    {loss:.3} nats per token after {tokens} tokens, {}",
                seconds(self.timing.seconds)
            )?;
        }
        let Some(row) = self.validated() else { return Ok(()) };
        let loss = row.val_loss.unwrap_or(f64::NAN);
        match (row.accuracy, self.text.and_then(|text| text.unigram_loss)) {
            (Some(accuracy), _) => {
                writeln!(out, "validation  accuracy {:.1} %, {loss:.3} nats per answer", 100.0 * accuracy)?;
            }
            (None, Some(unigram)) => {
                writeln!(out, "validation  {loss:.3} nats per token; token frequencies alone reach {unigram:.3}")?;
            }
            (None, None) => writeln!(out, "validation  {loss:.3} nats per token")?,
        }
        if let Some(bits) = self.bits_per_byte() {
            writeln!(out, "            {bits:.3} bits per byte, perplexity {:.2}", loss.exp())?;
        }
        Ok(())
    }

    pub(super) fn json(&self, out: &Path) -> serde_json::Value {
        let validated = self.validated();
        serde_json::json!({
            "event": "summary",
            "out": out.display().to_string(),
            "step": self.trainer.step(),
            "parameters": self.trainer.parameter_count(),
            "loss": self.trained().and_then(|row| row.loss),
            "val_loss": validated.and_then(|row| row.val_loss),
            "accuracy": validated.and_then(|row| row.accuracy),
            "bits_per_byte": self.bits_per_byte(),
            "tokens": self.trainer.metrics().last().map(|row| row.tokens),
            "seconds": self.timing.seconds,
            "peak_memory": self.device.peak_memory(),
        })
    }

    /// Writes `report.md`.
    pub(super) fn write(&self, out: &Path, sample: Option<&Sample>) -> anyhow::Result<()> {
        let text = self.page(sample);
        Ok(write_atomic(out.join(REPORT), |file| file.write_all(text.as_bytes()))?)
    }

    fn page(&self, sample: Option<&Sample>) -> String {
        let mut page = "# Training run\n\n| | |\n|---|---|\n".to_owned();
        for (name, value) in self.rows() {
            // memory takes every byte
            let _ = writeln!(page, "| {name} | {value} |");
        }
        page += "\n![Loss over steps](loss.svg)\n";
        if let Some(sample) = sample {
            let _ = write!(page, "\n## Sample\n\nAfter {:?}:\n\n{}", sample.prompt, fenced(sample));
        }
        if !self.samples.is_empty() {
            page += "\n## Samples during the run\n";
        }
        for sample in self.samples {
            let _ = write!(page, "\nAt step {}:\n\n{}", sample.step, fenced(sample));
        }
        let settings = self.settings.toml();
        page + "\n## Settings\n\n```toml\n" + settings.trim_end() + "\n```\n"
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let trainer = self.trainer;
        let mut rows = vec![
            ("program", format!("alluvium {}", crate::VERSION)),
            ("machine", format!("{}, {} {}", self.machine(), std::env::consts::OS, std::env::consts::ARCH)),
            ("parameters", count(trainer.parameter_count() as f64)),
        ];
        if let Some(text) = self.text {
            rows.push(("text", format!("{} files, {}", text.files, bytes(text.bytes))));
            let (trained, validation) = (text.train_tokens as f64, text.validation_tokens as f64);
            rows.push(("tokens", format!("{} to train on, {} for validation", count(trained), count(validation))));
        }
        if let Some(row) = self.trained() {
            let speed = count(row.tokens_per_second.unwrap_or(0.0));
            rows.push(("trained on", format!("{} tokens, {speed} tokens/s at the end", count(row.tokens as f64))));
            rows.push(("training loss", format!("{:.4} nats per token", row.loss.unwrap_or(f64::NAN))));
        }
        if let Some(row) = self.validated() {
            let loss = row.val_loss.unwrap_or(f64::NAN);
            rows.push(("validation loss", format!("{loss:.4} nats per token, perplexity {:.2}", loss.exp())));
            rows.extend(row.accuracy.map(|accuracy| ("accuracy", format!("{:.1} %", 100.0 * accuracy))));
        }
        rows.extend(self.bits_per_byte().map(|bits| ("bits per byte", format!("{bits:.4}"))));
        let unigram = self.text.and_then(|text| text.unigram_loss);
        rows.extend(unigram.map(|loss| ("token frequencies alone", format!("{loss:.4} nats per token"))));
        let Timing { seconds: time, first_step } = self.timing;
        let since = if first_step == 0 { String::new() } else { format!(" since step {first_step}") };
        rows.push(("steps", format!("{} in {}{since}", trainer.step() - first_step, seconds(time))));
        rows.push(("peak memory of tensors", bytes(self.device.peak_memory())));
        rows
    }

    fn machine(&self) -> String {
        match self.device {
            Device::Cpu(cpu) => {
                let name = cpu_name().map_or(String::new(), |name| format!("{name}: "));
                format!("{name}{}, {}", described(self.device), cpu.isa())
            }
            Device::Gpu(_) => described(self.device),
        }
    }
}

/// A prompt and the text after it, in a fence that no backquote of theirs ends.
fn fenced(Sample { prompt, text, .. }: &Sample) -> String {
    let fence = "`".repeat(3.max(longest_run(prompt).max(longest_run(text)) + 1));
    format!("{fence}text\n{prompt}{text}\n{fence}\n")
}

/// The longest run of backquotes in a text.
fn longest_run(text: &str) -> usize {
    text.split(|c| c != '`').map(str::len).max().unwrap_or(0)
}
