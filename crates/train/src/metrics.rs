//! What a run measured: a file of JSON lines that a resumed run continues without a seam.

use alluvium_core::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// One line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Steps done.
    pub step: u64,
    /// Mean loss of the tokens since the last line, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Mean loss of the held-out tokens, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out_loss: Option<f64>,
    /// Share of a task's held-out questions that are answered right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Learning rate of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f32>,
    /// Norm of the gradient before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f32>,
    /// Tokens trained on so far.
    pub tokens: u64,
    /// Tokens a second since the last line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Most bytes of tensors at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<usize>,
}

/// The file and what is in it.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    /// All lines, the oldest first.
    pub records: Vec<Record>,
}

impl Metrics {
    /// Opens the file and drops lines after `step`: what a killed run wrote and a resumed one will write again. The
    /// file stays locked, so that no second run writes to the same folder.
    ///
    /// # Errors
    /// When it cannot be read or written, or another run has it open.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let open = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = open.map_err(Error::io(path, "create"))?;
        // where there are no locks, nothing is lost
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::file(path, "another run is writing to this folder; wait for its end or choose another"));
        }
        let (mut records, mut kept) = (Vec::new(), 0);
        let mut lines = BufReader::new(&file);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).map_err(Error::io(path, "read"))? > 0 {
            // a line cut short by a kill is the last one: it is measured again
            let Some(record) = record(&line).filter(|record| record.step <= step) else { break };
            records.push(record);
            kept += line.len() as u64;
            line.clear();
        }
        file.set_len(kept).map_err(Error::io(path, "write"))?;
        Ok(Metrics { path: path.to_owned(), file, records })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn push(&mut self, record: Record) -> Result<()> {
        write_line(&mut self.file, &record).map_err(Error::io(&self.path, "write"))?;
        self.records.push(record);
        Ok(())
    }
}

/// A line with its end; none if it is cut short.
fn record(line: &[u8]) -> Option<Record> {
    serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
}

fn write_line(file: &mut File, record: &Record) -> std::io::Result<()> {
    let mut line = serde_json::to_string(record)?;
    line.push('\n');
    file.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> Record {
        Record { step, loss: Some(1.5), learning_rate: Some(0.1), tokens: step * 10, ..Record::default() }
    }

    #[test]
    fn a_resumed_file_forgets_what_came_after_and_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut metrics = Metrics::open(&path, 0).unwrap();
        (1..=4).for_each(|step| metrics.push(record(step)).unwrap());
        drop(metrics);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}{{\"step\":5,\"lo")).unwrap();
        let metrics = Metrics::open(&path, 2).unwrap();
        assert_eq!(metrics.records, [record(1), record(2)]);
        drop(metrics);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }
}
