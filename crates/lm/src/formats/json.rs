//! JSON as it is written to files.

use serde_json::Value;

/// Indented, with a newline at the end.
pub(crate) fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}
