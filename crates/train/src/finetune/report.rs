//! `report.md`: the run for a person.

use super::Finetune;
use alluvium_core::Result;
use alluvium_lm::formats::write_atomic;
use std::fmt::Write;

impl Finetune {
    /// Writes `report.md` to the folder of the adapter: settings, data, memory, losses, and the outputs of prompts.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_report(&self, test_loss: Option<f64>, outputs: &[(String, String)]) -> Result<()> {
        let path = self.settings.adapter_path.join("report.md");
        let text = self.report(test_loss, outputs).unwrap_or_default();
        write_atomic(path, |file| file.write_all(text.as_bytes()))
    }

    fn report(
        &self,
        test_loss: Option<f64>,
        outputs: &[(String, String)],
    ) -> std::result::Result<String, std::fmt::Error> {
        let Finetune { trainer, settings, data, memory, parameters: [trained, all], .. } = self;
        let mut text = String::from("# Fine-tuning\n\n");
        let share = 100.0 * *trained as f64 / (*all).max(1) as f64;
        writeln!(text, "- model: `{}`", settings.model.display())?;
        writeln!(text, "- type: {}, {trained} of {all} parameters trained ({share:.3} %)", settings.fine_tune_type)?;
        for (name, samples) in [("training", &data.train), ("validation", &data.validation), ("test", &data.test)] {
            let (count, tokens, targets) = (samples.len(), samples.tokens(), samples.target_count());
            write!(text, "- {name} data: {count} samples, {tokens} tokens, {targets} in the loss")?;
            writeln!(text, "; {} too long, {} without a target", samples.long, samples.without_target)?;
        }
        let (total, tokens) = (memory.total() >> 20, memory.tokens);
        writeln!(text, "- memory: {total} MiB estimated for a step of {tokens} tokens")?;
        if let Some(peak) = trainer.metrics().iter().filter_map(|row| row.peak_memory).max() {
            writeln!(text, "- peak memory: {} MiB", peak >> 20)?;
        }
        if let Some(loss) = test_loss {
            writeln!(text, "- test loss: {loss:.4} nats per token, perplexity {:.3}", loss.exp())?;
        }
        writeln!(text, "\n| step | loss | validation | learning rate | tokens/s |\n|---|---|---|---|---|")?;
        let number = |x: Option<f64>, digits: usize| x.map_or(String::new(), |x| format!("{x:.digits$}"));
        for row in trainer.metrics() {
            let rate = row.learning_rate.map_or(String::new(), |rate| format!("{rate:e}"));
            let (loss, validation) = (number(row.loss, 4), number(row.val_loss, 4));
            writeln!(text, "| {} | {loss} | {validation} | {rate} | {} |", row.step, number(row.tokens_per_second, 0))?;
        }
        for (prompt, output) in outputs {
            writeln!(text, "\n## Output\n\n```text\n{prompt}\n```\n\n```text\n{output}\n```")?;
        }
        Ok(text)
    }
}
