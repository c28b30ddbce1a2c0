//! Rows of Parquet files, the form of data sets on the Hugging Face Hub, as JSON objects.

use alluvium_core::{Error, Result};
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Bytes of all columns before compression: text of more tokens than a fine-tuning trains on.
const MOST: i64 = 4 << 30;

/// The rows of a file.
///
/// # Errors
/// [`Kind::Io`](alluvium_core::Kind::Io) when it cannot be opened; `Kind::File` when it is no Parquet file, is damaged,
/// holds more than 4 GiB or is compressed otherwise than with Snappy or gzip.
pub(super) fn rows(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let file = File::open(path).map_err(Error::io(path, "read"))?;
    let wrong = |why: String| Error::file(path, why);
    // the decoder panics on some damaged files
    match catch_unwind(AssertUnwindSafe(|| read(file))) {
        Ok(rows) => rows.map_err(wrong),
        Err(_) => Err(wrong("the file is damaged: it cannot be decoded".to_owned())),
    }
}

fn read(file: File) -> std::result::Result<Vec<Map<String, Value>>, String> {
    let words = |error: parquet::errors::ParquetError| match error.to_string() {
        why if why.contains("Disabled feature") => {
            format!("its compression is not read ({why}); write it with Snappy or gzip, or as JSON lines")
        }
        why => format!("not a valid Parquet file: {why}"),
    };
    let reader = SerializedFileReader::new(file).map_err(words)?;
    let groups = reader.metadata().row_groups();
    let bytes = groups.iter().fold(0i64, |sum, group| sum.saturating_add(group.total_byte_size().max(0)));
    if bytes > MOST {
        return Err(format!("it holds {bytes} bytes, expected at most {MOST}; split it"));
    }
    let rows = reader.get_row_iter(None).map_err(words)?;
    let object = |row: parquet::record::Row| match row.to_json_value() {
        Value::Object(keys) => Ok(keys),
        other => Err(format!("a row is {other}, expected columns")),
    };
    rows.map(|row| object(row.map_err(words)?)).collect()
}
