//! `metrics.jsonl`: the measurements of a run, one JSON object a line.

use alluvium_core::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The file's name in the folder of a run.
pub(crate) const FILE: &str = "metrics.jsonl";

/// The first line of the file. A file that begins otherwise belongs to another program and is not touched.
const HEADER: &str = "{\"format\":\"alluvium.metrics\",\"version\":1}\n";

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsRow {
    /// Steps done.
    pub step: u64,
    /// Mean training loss per target since the last row, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// Mean validation loss per target, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// Share of the validation targets that are the model's most likely token.
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
    /// Tokens per second since the last row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// Peak memory of all tensors in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<usize>,
}

/// The measurements of a run, in memory and, where it has a folder, in its `metrics.jsonl`.
#[derive(Debug, Default)]
pub struct Metrics {
    rows: Vec<MetricsRow>,
    file: Option<(PathBuf, File)>,
}

impl Metrics {
    /// Opens the file and removes rows after `step`: a killed run wrote them and a resumed one writes them again. Lines
    /// that cannot be read stay in the file. The file stays locked, so that no second run writes to the same folder.
    ///
    /// # Errors
    /// When it cannot be read or written, another run has it open, or it was not written by a training run.
    pub fn open(path: &Path, step: u64) -> Result<Self> {
        let open = OpenOptions::new().read(true).append(true).create(true).open(path);
        let mut file = open.map_err(Error::io(path, "create"))?;
        // a file system without locks loses nothing but this check
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::file(path, "another run is writing to this folder; wait for its end or choose another"));
        }
        let mut lines = BufReader::new(&file);
        let mut line = Vec::new();
        lines.by_ref().take(HEADER.len() as u64).read_to_end(&mut line).map_err(Error::io(path, "read"))?;
        let mut rows = Vec::new();
        if line != HEADER.as_bytes() {
            if !HEADER.as_bytes().starts_with(&line) {
                return Err(foreign(path));
            }
            // empty, or a header that a kill cut short
            file.set_len(0).map_err(Error::io(path, "write"))?;
            file.write_all(HEADER.as_bytes()).map_err(Error::io(path, "write"))?;
        } else {
            let mut kept = line.len() as u64;
            line.clear();
            while lines.read_until(b'\n', &mut line).map_err(Error::io(path, "read"))? > 0 {
                let row: Option<MetricsRow> = serde_json::from_slice(&line).ok();
                // a last line without its end was cut short by a kill
                if line.last() != Some(&b'\n') || row.as_ref().is_some_and(|row| row.step > step) {
                    break;
                }
                rows.extend(row);
                kept += line.len() as u64;
                line.clear();
            }
            file.set_len(kept).map_err(Error::io(path, "write"))?;
            file.seek(std::io::SeekFrom::End(0)).map_err(Error::io(path, "read"))?;
        }
        Ok(Metrics { rows, file: Some((path.to_owned(), file)) })
    }

    /// All rows, the oldest first.
    pub fn rows(&self) -> &[MetricsRow] {
        &self.rows
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn push(&mut self, row: MetricsRow) -> Result<()> {
        if let Some((path, file)) = &mut self.file {
            write_line(file, &row).map_err(Error::io(path, "write"))?;
        }
        self.rows.push(row);
        Ok(())
    }
}

/// Whether there is no file, or one that a training run wrote.
///
/// # Errors
/// When it cannot be read, or another program wrote it.
pub(crate) fn check_ours(path: &Path) -> Result<bool> {
    let mut start = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(HEADER.len() as u64).read_to_end(&mut start).map_err(Error::io(path, "read"))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io(path, "read")(error)),
    };
    if HEADER.as_bytes().starts_with(&start) { Ok(true) } else { Err(foreign(path)) }
}

fn foreign(path: &Path) -> Error {
    Error::file(path, "it was not written by a training run of Alluvium and stays unchanged; choose another folder")
}

fn write_line(file: &mut File, row: &MetricsRow) -> std::io::Result<()> {
    let mut line = serde_json::to_string(row)?;
    line.push('\n');
    file.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64) -> MetricsRow {
        MetricsRow { step, loss: Some(1.5), learning_rate: Some(0.1), tokens: step * 10, ..MetricsRow::default() }
    }

    fn written(folder: &Path, steps: u64) -> PathBuf {
        let path = folder.join(FILE);
        let mut metrics = Metrics::open(&path, 0).unwrap();
        (1..=steps).for_each(|step| metrics.push(row(step)).unwrap());
        path
    }

    #[test]
    fn a_resumed_file_drops_later_rows_and_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), 4);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}{{\"step\":5,\"lo")).unwrap();
        let metrics = Metrics::open(&path, 2).unwrap();
        assert_eq!(metrics.rows(), [row(1), row(2)]);
        drop(metrics);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 3);
    }

    #[test]
    fn a_damaged_line_costs_no_other_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), 9);
        let text = std::fs::read_to_string(&path).unwrap();
        let damaged: Vec<&str> =
            text.lines().enumerate().map(|(i, line)| if i == 4 { "garbage" } else { line }).collect();
        std::fs::write(&path, damaged.join("\n") + "\n").unwrap();
        let mut metrics = Metrics::open(&path, 9).unwrap();
        metrics.push(row(10)).unwrap();
        assert_eq!(metrics.rows().len(), 9);
        drop(metrics);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() == 11 && text.contains("garbage\n"), "{text}");
    }

    #[test]
    fn a_file_of_another_program_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        for text in ["{\"loss\":3.5,\"epoch\":1}\n", "x", "\n", "{\"step\":1,\"loss\":2.0,\"tokens\":3}\n"] {
            std::fs::write(&path, text).unwrap();
            let error = Metrics::open(&path, 0).unwrap_err().to_string();
            assert!(error.contains("not written by a training run"), "{error}");
            assert!(check_ours(&path).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        for text in ["", &HEADER[..9], HEADER] {
            std::fs::write(&path, text).unwrap();
            assert!(check_ours(&path).unwrap() && Metrics::open(&path, 0).is_ok(), "{text}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), HEADER);
        }
    }
}
