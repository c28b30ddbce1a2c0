//! Lines of fine-tuning data: their forms, and the tokens that they become.

use super::samples::Sample;
use alluvium_core::{Error, Result};
use alluvium_lm::{Conversation, Message, PromptEnd, Tokenizer};
use serde_json::{Map, Value};
use std::ops::Range;
use std::path::Path;

/// The tokens that count in the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Targets {
    /// All tokens.
    #[default]
    All,
    /// The answers of the assistant, every turn: `--mask-prompt`.
    Answers,
}

/// One line of a file.
#[derive(Clone, Debug, PartialEq)]
enum Record {
    Text(String),
    Conversation(Conversation),
}

/// Reads a file of one JSON object a line, or, with the feature `parquet`, the rows of a Parquet file: `messages`, `prompt` and `completion`, `text`, Alpaca's `instruction` and
/// `output`, ShareGPT's `conversations`. Empty lines are skipped.
///
/// # Errors
/// [`Kind::Io`](alluvium_core::Kind::Io) when it cannot be read; `Kind::File` with the number of the line that is not a
/// JSON object of one of these forms, or that the chat template refuses.
pub fn read_samples(path: &Path, tokenizer: &Tokenizer, targets: Targets) -> Result<Vec<Sample>> {
    let sample = |(place, keys): (String, Map<String, Value>)| {
        let wrong = |why: String| Error::file(path, format!("{place}: {why}"));
        let record = record(keys).map_err(wrong)?;
        record.sample(tokenizer, targets).map_err(|error| wrong(error.to_string()))
    };
    rows(path)?.into_iter().map(sample).collect()
}

/// Reads pairs of a `chosen` and a `rejected` answer, which are strings after a `prompt`, or lists of messages with or
/// without one. The last answer of each counts.
///
/// # Errors
/// As [`read_samples`].
pub fn read_pairs(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<[Sample; 2]>> {
    let pair = |(place, keys): (String, Map<String, Value>)| {
        let wrong = |why: String| Error::file(path, format!("{place}: {why}"));
        let sample = |key| {
            let record = preference(keys.clone(), key).map_err(wrong)?;
            let mut sample = record.sample(tokenizer, Targets::Answers).map_err(|error| wrong(error.to_string()))?;
            sample.answers = sample.answers.pop().into_iter().collect();
            Ok::<_, Error>(sample)
        };
        Ok([sample("chosen")?, sample("rejected")?])
    };
    rows(path)?.into_iter().map(pair).collect()
}

/// The objects of a file, each with its place in words.
fn rows(path: &Path) -> Result<Vec<(String, Map<String, Value>)>> {
    if path.extension().is_some_and(|end| end == "parquet") {
        #[cfg(feature = "parquet")]
        return Ok((1..).map(|row| format!("row {row}")).zip(super::parquet::rows(path)?).collect());
        #[cfg(not(feature = "parquet"))]
        return Err(Error::file(
            path,
            "this program was built without the feature `parquet`; convert it to JSON lines",
        ));
    }
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let lines = (1..).zip(bytes.split(|byte| *byte == b'\n')).filter(|(_, line)| !line.trim_ascii().is_empty());
    let object = |(number, line): (usize, &[u8])| {
        let place = format!("line {number}");
        let line = std::str::from_utf8(line).map_err(|_| "not valid UTF-8; save the file as UTF-8".to_owned());
        let keys = line.and_then(object).map_err(|why| Error::file(path, format!("{place}: {why}")))?;
        Ok((place, keys))
    };
    lines.map(object).collect()
}

/// Reads samples that a model is calibrated or distilled with: a `.jsonl` or `.parquet` file as [`read_samples`]
/// does, any other file as one text, cut into samples of `length` tokens. A shorter rest is left out unless it is all there is.
///
/// # Errors
/// As [`read_samples`].
pub fn read_calibration(path: &Path, tokenizer: &Tokenizer, length: usize) -> Result<Vec<Sample>> {
    if path.extension().is_some_and(|end| end == "jsonl" || end == "parquet") {
        return read_samples(path, tokenizer, Targets::All);
    }
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    let tokens = tokenizer.encode(&text)?;
    let whole = tokens.len() / length.max(1) * length.max(1);
    let counted = if whole > 0 { &tokens[..whole] } else { &tokens[..] };
    let sample = |tokens: &[u32]| Sample::whole(tokens.to_vec());
    Ok(counted.chunks(length.max(1)).map(sample).collect())
}

fn object(line: &str) -> std::result::Result<Map<String, Value>, String> {
    let value: Value = serde_json::from_str(line).map_err(|error| {
        let why = error.to_string();
        // the place that it names is one within this line
        format!("not valid JSON: {} at column {}", why.split(" at line ").next().unwrap_or_default(), error.column())
    })?;
    match value {
        Value::Object(keys) => Ok(keys),
        _ => Err("expected a JSON object".to_owned()),
    }
}

/// The conversation of a pair whose last answer is that of `key`.
fn preference(mut keys: Map<String, Value>, key: &str) -> std::result::Result<Record, String> {
    if !keys.contains_key("chosen") || !keys.contains_key("rejected") {
        let keys: Vec<String> = keys.keys().map(|key| format!("`{key}`")).collect();
        return Err(format!(
            "the line has {}; expected `chosen` and `rejected`, and perhaps `prompt`",
            keys.join(", ")
        ));
    }
    let has_prompt = keys.get("prompt").is_some_and(|prompt| !prompt.is_null());
    let mut messages = if has_prompt { turns(&mut keys, "prompt", "user")? } else { Vec::new() };
    let answer = turns(&mut keys, key, "assistant")?;
    // some files repeat the prompt
    if messages.last().is_some_and(|prompt| answer.contains(prompt)) {
        messages.clear();
    }
    messages.extend(answer);
    if messages.last().is_none_or(|message| message.role != "assistant") {
        return Err(format!("`{key}` does not end with a message of the assistant"));
    }
    keys.remove("prompt");
    conversation(messages, &mut keys)
}

fn record(mut keys: Map<String, Value>) -> std::result::Result<Record, String> {
    // of several forms the first counts, in mlx-lm's order
    let messages = if keys.contains_key("prompt") && keys.contains_key("completion") {
        let mut messages = turns(&mut keys, "prompt", "user")?;
        messages.extend(turns(&mut keys, "completion", "assistant")?);
        messages
    } else if let Some(messages) = keys.remove("messages") {
        serde_json::from_value(messages).map_err(|error| format!("`messages`: {error}"))?
    } else if let Some(turns) = keys.remove("conversations") {
        share_gpt(&mut keys, turns)?
    } else if keys.contains_key("instruction") && keys.contains_key("output") {
        alpaca(&mut keys)?
    } else {
        return match keys.get("text") {
            Some(Value::String(text)) => Ok(Record::Text(text.clone())),
            Some(other) => Err(format!("`text` is {other}, expected a string")),
            None => {
                let keys: Vec<String> = keys.keys().map(|key| format!("`{key}`")).collect();
                let known =
                    "`messages`, `prompt` and `completion`, `text`, `instruction` and `output`, `conversations`";
                Err(format!("the line has {}; expected {known}", keys.join(", ")))
            }
        };
    };
    conversation(messages, &mut keys)
}

/// Messages with the tools of their line.
fn conversation(messages: Vec<Message>, keys: &mut Map<String, Value>) -> std::result::Result<Record, String> {
    let mut conversation = Conversation { end: PromptEnd::FinalMessage, ..Conversation::new(messages) };
    if conversation.messages.is_empty() {
        return Err("it has no message".to_owned());
    }
    if let Some(tools) = keys.remove("tools").filter(|tools| !tools.is_null()) {
        conversation.tools = serde_json::from_value(tools).map_err(|error| format!("`tools`: {error}"))?;
    }
    Ok(Record::Conversation(conversation))
}

/// A string as one message of a role, or a list of messages.
fn turns(keys: &mut Map<String, Value>, key: &str, role: &str) -> std::result::Result<Vec<Message>, String> {
    match keys.remove(key) {
        Some(Value::String(text)) => Ok(vec![Message::new(role, text)]),
        Some(list @ Value::Array(_)) => serde_json::from_value(list).map_err(|error| format!("`{key}`: {error}")),
        other => Err(format!("`{key}` is {}, expected a string or messages", other.unwrap_or_default())),
    }
}

fn string(keys: &mut Map<String, Value>, key: &str) -> std::result::Result<Option<String>, String> {
    match keys.remove(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("`{key}` is {other}, expected a string")),
    }
}

fn alpaca(keys: &mut Map<String, Value>) -> std::result::Result<Vec<Message>, String> {
    let mut messages: Vec<Message> = string(keys, "system")?.into_iter().map(Message::system).collect();
    let mut instruction = string(keys, "instruction")?.unwrap_or_default();
    if let Some(input) = string(keys, "input")?.filter(|input| !input.is_empty()) {
        instruction += &format!("\n\n{input}");
    }
    messages.push(Message::user(instruction));
    messages.push(Message::assistant(string(keys, "output")?.unwrap_or_default()));
    Ok(messages)
}

fn share_gpt(keys: &mut Map<String, Value>, turns: Value) -> std::result::Result<Vec<Message>, String> {
    let mut messages: Vec<Message> = string(keys, "system")?.into_iter().map(Message::system).collect();
    let Value::Array(turns) = turns else { return Err("`conversations` is not a list".to_owned()) };
    for turn in turns {
        // some files have messages under this key
        if turn.get("role").is_some() {
            messages.push(serde_json::from_value(turn).map_err(|error| format!("`conversations`: {error}"))?);
            continue;
        }
        let text = |key: &str| turn.get(key).and_then(Value::as_str);
        let (Some(from), Some(value)) = (text("from"), text("value")) else {
            return Err(format!("`conversations` has {turn}, expected `from` and `value`"));
        };
        let role = match from {
            "human" | "user" => "user",
            "gpt" | "assistant" | "model" | "chatgpt" => "assistant",
            "system" => "system",
            "tool" | "observation" | "function_response" => "tool",
            other => return Err(format!("`from` is `{other}`, expected human, gpt, system or tool")),
        };
        messages.push(Message::new(role, value));
    }
    Ok(messages)
}

impl Record {
    fn sample(&self, tokenizer: &Tokenizer, targets: Targets) -> Result<Sample> {
        match self {
            Record::Text(text) => {
                if targets == Targets::Answers {
                    let why = "a `text` has no prompt that --mask-prompt could mask; give `messages`, or `prompt` and \
                               `completion`";
                    return Err(Error::value("samples", why));
                }
                let mut tokens = tokenizer.encode(text)?;
                let end = tokenizer.end_of_text().or(tokenizer.eos_token_ids().first().copied());
                tokens.extend(end.filter(|end| tokens.last() != Some(end)));
                let all = 0..tokens.len();
                Ok(Sample { tokens, answers: vec![all] })
            }
            Record::Conversation(conversation) => {
                let tokens = conversation.encode(tokenizer)?;
                let all = 0..tokens.len();
                let answers = match targets {
                    Targets::All => vec![all],
                    Targets::Answers => answers(conversation, &tokens, tokenizer)?,
                };
                Ok(Sample { tokens, answers })
            }
        }
    }
}

/// The places of the assistant's answers. An answer begins where the prompt of its turn ends, and ends with its
/// end-of-turn token; the last one with the conversation, as in mlx-lm.
fn answers(conversation: &Conversation, tokens: &[u32], tokenizer: &Tokenizer) -> Result<Vec<Range<usize>>> {
    let turns: Vec<usize> =
        (0..conversation.messages.len()).filter(|&i| conversation.messages[i].role == "assistant").collect();
    let mut places: Vec<Range<usize>> = Vec::new();
    for &turn in &turns {
        // a message that follows another one of the assistant belongs to the same prompt
        let prompt = Conversation {
            messages: conversation.messages[..turn].to_vec(),
            end: PromptEnd::GenerationPrompt,
            ..conversation.clone()
        };
        let prompt = prompt.encode(tokenizer)?;
        // where a template writes earlier turns otherwise than the last one, the common part is the prompt
        let start = prompt.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let ends = |token: &u32| tokenizer.eos_token_ids().contains(token);
        let end = match tokens[start..].iter().position(ends) {
            Some(place) if turn + 1 < conversation.messages.len() => start + place + 1,
            _ => tokens.len(),
        };
        match places.last_mut() {
            Some(last) if start < last.end => last.end = last.end.max(end),
            _ => places.push(start..end),
        }
    }
    Ok(places)
}
