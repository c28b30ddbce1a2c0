//! Tool calls in generated text: `<tool_call>` with JSON (Hermes, Qwen) or with XML (Qwen3-Coder) inside.

use crate::error::ApiError;
use alluvium_lm::grammar::{GrammarText, with_bounded_space};
use serde_json::{Map, Value, json};
use std::fmt::Write;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// A piece of an answer.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    Text(String),
    /// The name and the arguments of a function.
    Call(String, Value),
}

/// Separates tool calls from streamed text.
#[derive(Debug, Default)]
pub(crate) struct ToolParser {
    /// Text that may be or is a part of a call.
    held: String,
    /// Only white space came since the last call.
    after_call: bool,
}

impl ToolParser {
    /// The pieces that the next text completes.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held += text;
        let mut pieces = Vec::new();
        loop {
            let Some(start) = self.held.find(OPEN) else {
                let safe = self.held.len() - partial(&self.held, OPEN);
                let rest = self.held.split_off(safe);
                let text = std::mem::replace(&mut self.held, rest);
                self.text(text, &mut pieces);
                return pieces;
            };
            let call = self.held.split_off(start);
            let text = std::mem::replace(&mut self.held, call);
            self.text(text, &mut pieces);
            let Some(end) = self.held.find(CLOSE) else { return pieces };
            let rest = self.held.split_off(end + CLOSE.len());
            let call = std::mem::replace(&mut self.held, rest);
            match parse(call[OPEN.len()..end].trim()) {
                Some((name, arguments)) => {
                    pieces.push(Piece::Call(name, arguments));
                    self.after_call = true;
                }
                // what is no call stays text
                None => self.text(call, &mut pieces),
            }
        }
    }

    /// What was held back.
    pub(crate) fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let text = std::mem::take(&mut self.held);
        self.text(text, &mut pieces);
        pieces
    }

    fn text(&mut self, text: String, pieces: &mut Vec<Piece>) {
        // white space between calls is a part of the format
        if text.is_empty() || (self.after_call && text.trim().is_empty()) {
            return;
        }
        self.after_call = false;
        pieces.push(Piece::Text(text));
    }
}

/// The length of the longest end of a text that begins a tag.
fn partial(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&n| text.ends_with(&tag[..n])).unwrap_or(0)
}

/// The name and the arguments of a call.
fn parse(call: &str) -> Option<(String, Value)> {
    if let Ok(Value::Object(mut object)) = serde_json::from_str(call) {
        let Some(Value::String(name)) = object.remove("name") else { return None };
        return Some((name, object.remove("arguments").unwrap_or_else(|| json!({}))));
    }
    let call = call.strip_prefix("<function=")?;
    let (name, mut rest) = call.split_once('>')?;
    let mut arguments = Map::new();
    while let Some((_, parameter)) = rest.split_once("<parameter=") {
        let (key, value) = parameter.split_once('>')?;
        let (value, after) = value.split_once("</parameter>")?;
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        // numbers, lists and objects are written as JSON, text as it is
        let parsed = serde_json::from_str(value).unwrap_or_else(|_| value.into());
        arguments.insert(key.trim().to_owned(), parsed);
        rest = after;
    }
    Some((name.trim().to_owned(), arguments.into()))
}

/// The form of calls that a template teaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallForm {
    /// `{"name": …, "arguments": …}`
    Json,
    /// `<function=…><parameter=…>`
    Xml,
}

impl CallForm {
    /// The form of a template.
    pub(crate) fn of(template: &str) -> Self {
        if template.contains("<function=") { CallForm::Xml } else { CallForm::Json }
    }
}

/// The name of a tool.
pub(crate) fn name(tool: &Value) -> Option<&str> {
    tool["function"]["name"].as_str().or(tool["name"].as_str())
}

/// The grammar of one call of one of these tools, or of an answer in a format.
pub(crate) fn grammar(tools: &[&Value], form: CallForm, format: Option<GrammarText>) -> Result<GrammarText, ApiError> {
    let text = |text: String| Value::from(text).to_string();
    let calls: Vec<String> = (0..tools.len()).map(|n| format!("call_{n}")).collect();
    let mut rules = format!("call: {OPEN:?} \"\\n\" ({}) \"\\n\" {CLOSE:?}\n", calls.join(" | "));
    for (n, tool) in tools.iter().enumerate() {
        let name = name(tool).ok_or_else(|| ApiError::bad(format!("a tool has no name: {tool}")))?;
        let schema =
            [&tool["function"]["parameters"], &tool["parameters"]].into_iter().find(|schema| schema.is_object());
        let any = json!({"type": "object"});
        let schema = with_bounded_space(schema.unwrap_or(&any).clone());
        // writing to a string cannot fail
        let _ = match form {
            CallForm::Json => {
                let start = text(format!("{{\"name\": {}, \"arguments\": ", text(name.to_owned())));
                write!(rules, "call_{n}: {start} arguments_{n} \"}}\"\narguments_{n}: %json {schema}\n")
            }
            CallForm::Xml => {
                let (parameters, own) = parameters(n, &schema);
                let start = text(format!("<function={name}>\n"));
                write!(rules, "call_{n}: {start} {parameters} \"</function>\"\n{own}")
            }
        };
    }
    let answer = |schema| format!("start: call | answer\nanswer: %json {}\n", with_bounded_space(schema));
    let start = match format {
        None => "start: call\n".to_owned(),
        Some(GrammarText::JsonObject) => answer(json!({"type": "object"})),
        Some(GrammarText::JsonSchema(schema)) => answer(schema),
        Some(_) => return Err(ApiError::bad("`response_format` with a grammar cannot be combined with tools")),
    };
    Ok(GrammarText::Lark(start + &rules))
}

/// The parameters of a call in XML: their sequence, and the rules of each.
fn parameters(call: usize, schema: &Value) -> (String, String) {
    let (mut sequence, mut rules) = (String::new(), String::new());
    let required = |key: &str| schema["required"].as_array().is_some_and(|all| all.iter().any(|name| name == key));
    for (n, (key, schema)) in schema["properties"].as_object().into_iter().flatten().enumerate() {
        let optional = if required(key) { "" } else { "?" };
        let start = Value::from(format!("<parameter={key}>\n"));
        let value = match schema["type"].as_str() {
            Some("string") if schema["enum"].is_null() => "/([^<]|<[^\\/])*/".to_owned(),
            _ => format!("%json {}", with_bounded_space(schema.clone())),
        };
        // writing to a string cannot fail
        let _ = write!(sequence, "parameter_{call}_{n}{optional} ");
        let end = "\"\\n</parameter>\\n\"";
        let _ = write!(rules, "parameter_{call}_{n}: {start} value_{call}_{n} {end}\nvalue_{call}_{n}: {value}\n");
    }
    (sequence, rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Let me see.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>\n\
        <function=find>\n<parameter=what>\na <b> c\n</parameter>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>";

    fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
        let mut all: Vec<Piece> = Vec::new();
        for piece in pieces {
            match (all.last_mut(), piece) {
                (Some(Piece::Text(before)), Piece::Text(text)) => before.push_str(&text),
                (_, piece) => all.push(piece),
            }
        }
        all
    }

    #[test]
    fn calls_are_found_however_the_text_is_cut() {
        let want = [
            Piece::Text("Let me see.\n".to_owned()),
            Piece::Call("add".to_owned(), json!({"a": 1})),
            Piece::Call("find".to_owned(), json!({"what": "a <b> c", "n": 3})),
        ];
        for size in 1..TEXT.len() {
            let mut parser = ToolParser::default();
            let mut pieces = Vec::new();
            for part in TEXT.as_bytes().chunks(size) {
                pieces.extend(parser.push(std::str::from_utf8(part).unwrap_or_default()));
            }
            pieces.extend(parser.finish());
            assert_eq!(joined(pieces), want, "{size}");
        }
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for text in ["a < b", "<tool_call>not json</tool_call>", "<tool_call>{\"name\": \"cut", "<tool"] {
            let mut parser = ToolParser::default();
            let mut pieces = parser.push(text);
            pieces.extend(parser.finish());
            assert_eq!(joined(pieces), [Piece::Text(text.to_owned())]);
        }
    }
}
