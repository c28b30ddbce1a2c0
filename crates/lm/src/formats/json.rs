//! JSON as it is read from and written to files.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Parses a file's JSON. A byte order mark in front, which some editors write, is passed over.
///
/// # Errors
/// In words, when it is not valid JSON or not what is expected.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes).map_err(|error| match error.is_data() {
        true => format!("not what is expected there: {error}"),
        false => format!("not valid JSON: {error}"),
    })
}

/// Indented, with a newline at the end.
pub(crate) fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}
