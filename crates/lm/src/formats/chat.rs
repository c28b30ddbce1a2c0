//! Chat templates: messages to the text of a prompt.
//!
//! Templates are Jinja as transformers runs it: blocks are trimmed, strings have Python's methods, loops can be left;
//! `raise_exception`, `strftime_now` and a `tojson` that writes as Python does are there.

use super::tokenizer::Tokenizer;
use alluvium_core::{Error, Kind, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json, json};
use std::fmt::Write as _;
use std::io;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

/// Steps that a template may take: long chats take a few hundred thousand, a template that loops takes all.
const FUEL: u64 = 20_000_000;
/// Bytes that a template may write.
const LONGEST: usize = 64 << 20;

/// Brackets that may be open in a template at once. The engine counts them itself in expressions, but not where a loop names
/// its variables: thousands of them are the end of its stack.
const DEEPEST: usize = 400;

/// What transformers puts behind a message that is gone on with, to find its end in what the template writes.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Bytes of a template: some checkpoints have twenty thousand.
const LARGEST: usize = 64 << 10;
/// Bytes of stack: the engine goes down a step for each operator that follows another, and some are a byte. Memory that
/// nothing touches costs nothing.
const STACK: usize = 128 << 20;

/// Columns that `tojson` may indent by.
const WIDEST: usize = 64;

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Message { role: role.to_owned(), content: content.into() }
    }
}

/// How the text of a prompt ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// With what makes the model answer.
    #[default]
    Answer,
    /// With the last message, ended.
    Message,
    /// Within the last message, which the model goes on with.
    Continue,
}

impl Tokenizer {
    /// The text of a prompt for messages; `variables` are given to the template, such as `enable_thinking`.
    ///
    /// # Errors
    /// When there is no template, it cannot be read, fails, calls `raise_exception` or does not come to an end.
    pub fn chat(&self, messages: &[Message], ending: Ending, variables: &Map<String, Json>) -> Result<String> {
        let template = self
            .chat_template()
            .ok_or_else(|| Error::value("chat template", "this model has none; give it the plain prompt"))?;
        let mut messages = messages.to_vec();
        let mut last = String::new();
        if let Some(message) = messages.last_mut().filter(|_| ending == Ending::Continue) {
            last = message.content.trim().to_owned();
            message.content += MARK;
        }
        let messages: Vec<Json> = messages.iter().map(|m| json!({"role": m.role, "content": m.content})).collect();
        let mut context = Map::new();
        context.insert("add_generation_prompt".to_owned(), (ending == Ending::Answer).into());
        context.insert("enable_thinking".to_owned(), self.thinking().is_some().into());
        for key in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            if let Some(token) = self.special(key) {
                context.insert(key.to_owned(), token.into());
            }
        }
        context.extend(variables.clone());
        context.insert("messages".to_owned(), messages.into());
        let mut text = render(template, &context.into()).map_err(|error| match error.kind() {
            // the engine's name for a template that has none
            Kind::Value { what, why } => Error::value(what, why.replace("<string>", self.template_name())),
            _ => error,
        })?;
        if ending == Ending::Continue {
            let mark = text.rfind(MARK.trim_end()).filter(|_| text.contains(&last));
            let end = mark.ok_or_else(|| Error::value("chat template", "it leaves out the last message"))?;
            // a template that trims messages took the mark's space, and would have taken what is before the mark
            let trims = !text[end..].starts_with(MARK);
            text.truncate(end);
            if trims {
                text.truncate(text.trim_end().len());
            }
        }
        Ok(text)
    }
}

/// The text that a template makes.
///
/// # Errors
/// When the template cannot be read, fails, calls `raise_exception` or does not come to an end.
pub fn render(template: &str, context: &Json) -> Result<String> {
    if template.len() > LARGEST {
        let why = format!("it has {} bytes, at most {LARGEST} are read", template.len());
        return Err(Error::value("chat template", why));
    }
    // a template is a stranger's program, and some make the engine panic: `loop.cycle()` of nothing divides by zero
    let done = thread::scope(|scope| {
        let own = thread::Builder::new().name("chat template".to_owned()).stack_size(STACK);
        own.spawn_scoped(scope, || run(template, context)).map(|thread| thread.join())
    });
    match done {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => Err(Error::value("chat template", "the template engine broke down at it")),
        Err(error) => Err(Error::value("chat template", format!("no thread for it: {error}"))),
    }
}

fn run(template: &str, context: &Json) -> Result<String> {
    if nesting(template) > DEEPEST {
        return Err(Error::value("chat template", format!("more than {DEEPEST} brackets are open at once")));
    }
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
    let mut environment = Environment::new();
    environment.set_syntax(syntax);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |why: String| -> std::result::Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, why))
    });
    environment.add_function("strftime_now", |format: String| strftime(&format, SystemTime::now()));
    environment.add_filter("tojson", to_json);
    let template = without_generation_tags(template);
    let template = environment.template_from_str(&template).map_err(failed)?;
    let mut written = Written(Vec::new());
    template.render_captured_to(value(context), &mut written).map_err(failed)?;
    String::from_utf8(written.0).map_err(|_| Error::value("chat template", "it wrote bytes that are no text"))
}

/// The most brackets that are open at once.
fn nesting(template: &str) -> usize {
    let (mut open, mut most) = (0_usize, 0);
    for byte in template.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// What a template has written, up to [`LONGEST`] bytes.
struct Written(Vec<u8>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > LONGEST {
            return Err(io::Error::other(format!("it wrote more than {LONGEST} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn failed(error: minijinja::Error) -> Error {
    let why = match error.kind() {
        ErrorKind::OutOfFuel => "it does not come to an end".to_owned(),
        ErrorKind::WriteFailure => format!("it wrote more than {LONGEST} bytes"),
        _ => error.to_string(),
    };
    Error::value("chat template", why)
}

/// `{% generation %}` marks what an assistant said, for training; it writes nothing.
fn without_generation_tags(template: &str) -> String {
    let mut text = template.to_owned();
    for (tag, plain) in [("endgeneration", "endif"), ("generation", "if true")] {
        for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
            text = text.replace(&format!("{open} {tag} {close}"), &format!("{open} {plain} {close}"));
        }
    }
    text
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(key, item)| (key.clone(), value(item)))),
    }
}

/// As `json.dumps` of Python: `", "` and `": "` between items, or a line for each with `indent`.
fn to_json(x: &Value, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    if indent.is_some_and(|indent| indent > WIDEST) {
        let why = format!("tojson: an indent of {} is too wide, at most {WIDEST} are taken", indent.unwrap_or(0));
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, why));
    }
    let mut text = String::new();
    write_json(x, indent, 0, &mut text)?;
    Ok(text)
}

fn write_json(
    x: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> std::result::Result<(), minijinja::Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let is_map = match x.kind() {
        ValueKind::Map => true,
        ValueKind::Seq | ValueKind::Iterable => false,
        ValueKind::String => {
            *out += &Json::from(x.as_str().unwrap_or_default()).to_string();
            return Ok(());
        }
        ValueKind::None | ValueKind::Undefined => {
            *out += "null";
            return Ok(());
        }
        ValueKind::Bool => {
            *out += if x.is_true() { "true" } else { "false" };
            return Ok(());
        }
        _ => {
            let _ = write!(out, "{x}");
            return Ok(());
        }
    };
    let (open, close) = if is_map { ('{', '}') } else { ('[', ']') };
    out.push(open);
    let mut empty = true;
    for item in x.try_iter()? {
        if !empty {
            *out += comma;
        }
        empty = false;
        line(out, depth + 1);
        if is_map {
            *out += &Json::from(item.to_string()).to_string();
            *out += ": ";
            write_json(&x.get_item(&item)?, indent, depth + 1, out)?;
        } else {
            write_json(&item, indent, depth + 1, out)?;
        }
    }
    if !empty {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

/// A moment in UTC, as C's `strftime` writes it; a letter that is not known stays as it is.
fn strftime(format: &str, now: SystemTime) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let [year, month, day] = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[((days + 4) % 7) as usize]);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let _ = match letters.next() {
            Some('Y') => write!(out, "{year}"),
            Some('y') => write!(out, "{:02}", year % 100),
            Some('m') => write!(out, "{month:02}"),
            Some('d') => write!(out, "{day:02}"),
            Some('e') => write!(out, "{day:2}"),
            Some('H') => write!(out, "{hour:02}"),
            Some('I') => write!(out, "{:02}", (hour + 11) % 12 + 1),
            Some('M') => write!(out, "{minute:02}"),
            Some('S') => write!(out, "{second:02}"),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('B') => write!(out, "{month_name}"),
            Some('b') => write!(out, "{}", &month_name[..3]),
            Some('A') => write!(out, "{day_name}"),
            Some('a') => write!(out, "{}", &day_name[..3]),
            Some('%') => write!(out, "%"),
            Some(other) => write!(out, "%{other}"),
            None => write!(out, "%"),
        };
    }
    out
}

/// Year, month and day of a day counted from 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms").
fn date(days: u64) -> [u64; 3] {
    let z = days + 719_468;
    let (era, day) = (z / 146_097, z % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    [year + era * 400 + u64::from(month <= 2), month, day]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn rendered(template: &str, context: Json) -> String {
        render(template, &context).unwrap()
    }

    #[test]
    fn templates_have_what_those_of_checkpoints_use() {
        let messages = json!([{"role": "user", "content": " hi "}, {"role": "assistant", "content": "</think>yes"}]);
        let text = rendered(
            "{%- set ns = namespace(n=0) %}\n{% for m in messages %}\n    {% set ns.n = ns.n + 1 %}\n{{ m['role'].upper() }}:{{ m.content.strip().split('</think>')[-1] }};\n{% endfor %}\n{{ ns.n }}{{ messages[::-1][0].role }}",
            json!({"messages": messages}),
        );
        assert_eq!(text, "USER:hi;\nASSISTANT:yes;\n2assistant");
        assert_eq!(
            rendered("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", json!({})),
            "012"
        );
        assert_eq!(rendered("{% generation %}a{%- endgeneration %}", json!({})), "a");
        assert_eq!(
            rendered("{{ x is defined }}{{ y is none }}{{ 'a' in 'cat' }}", json!({"y": null})),
            "FalseTrueTrue"
        );
    }

    #[test]
    fn json_is_written_as_python_does() {
        let x = json!({"x": {"b": [1, 2.5, null], "a": "<é>", "t": true, "e": {}}});
        assert_eq!(rendered("{{ x | tojson }}", x.clone()), r#"{"b": [1, 2.5, null], "a": "<é>", "t": true, "e": {}}"#);
        let lines = rendered("{{ x.b | tojson(indent=2) }}", x);
        assert_eq!(lines, "[\n  1,\n  2.5,\n  null\n]");
    }

    #[test]
    fn a_template_that_fails_says_why_and_one_that_loops_is_stopped() {
        let error = |template: &str| render(template, &json!({})).unwrap_err().to_string();
        assert!(error("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
        assert!(error("{% if %}").starts_with("chat template: "), "{}", error("{% if %}"));
        let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        assert_eq!(error(loops), "chat template: it does not come to an end");
        let nested = format!("{{% for {}a{} in [] %}}{{% endfor %}}", "(".repeat(9_999), ",)".repeat(9_999));
        assert_eq!(error(&nested), "chat template: more than 400 brackets are open at once");
        let large = " ".repeat(LARGEST + 1);
        assert_eq!(error(&large), "chat template: it has 65537 bytes, at most 65536 are read");
        let divides = "{% for i in range(2) %}{{ loop.cycle() }}{% endfor %}";
        assert_eq!(error(divides), "chat template: the template engine broke down at it");
        let writes = "{% for a in range(9999) %}{{ 'a' * 9999 }}{% endfor %}";
        assert_eq!(error(writes), "chat template: it wrote more than 67108864 bytes");
        assert!(error("{{ 'a' * 10 ** 9 }}").contains("too large"), "{}", error("{{ 'a' * 10 ** 9 }}"));
        assert!(error("{{ [1] | tojson(indent=999999999) }}").contains("too wide"));
        assert!(error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion"));
    }

    #[test]
    fn as_many_operators_in_a_row_as_fit_are_an_answer_or_an_error() {
        let ends = [
            ("1+", "1"),
            ("-", "1"),
            ("not ", "1"),
            ("'a' ~ ", "1"),
            ("1**", "1"),
            ("1 if 1 else ", "1"),
            ("x.a or ", "1"),
            ("1 == ", "1"),
        ];
        for (again, last) in ends {
            let all = format!("{{{{ {}{last} }}}}", again.repeat((LARGEST - 20) / again.len()));
            let _ = render(&all, &json!({}));
        }
        for again in ["|string", "[0]", ".a", "()", " is defined"] {
            let _ = render(&format!("{{{{ x{} }}}}", again.repeat((LARGEST - 20) / again.len())), &json!({}));
        }
        for (again, end) in
            [("{% elif 0 %}", ""), ("{% else %}{% if 0 %}", "{% endif %}"), ("{% if 1 %}", "{% endif %}")]
        {
            let times = (LARGEST - 40) / (again.len() + end.len());
            let all = format!("{{% if 0 %}}{}{}{{% endif %}}", again.repeat(times), end.repeat(times));
            let _ = render(&all, &json!({}));
        }
    }

    #[test]
    fn a_date_is_written_as_c_does() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(strftime("%d %b %Y, %A %H:%M:%S", at(951_827_696)), "29 Feb 2000, Tuesday 12:34:56");
        assert_eq!(strftime("%Y-%m-%d %I%p %%", at(0)), "1970-01-01 12AM %");
    }
}
