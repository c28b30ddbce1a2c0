//! JSON as it is read from and written to files.

use super::foreign;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Parses the JSON of a file. A leading byte order mark, which some editors write, is skipped.
///
/// # Errors
/// A message, when it is not valid JSON or not of the expected type; where it is a known kind of other file, its kind.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes).map_err(|error| match (error.is_data(), foreign::describe(bytes)) {
        (true, _) => format!("not what is expected there: {error}"),
        (false, Some(kind)) => format!("not valid JSON: {kind}"),
        (false, None) => format!("not valid JSON: {error}"),
    })
}

/// Indented, with a newline at the end.
pub(crate) fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}
