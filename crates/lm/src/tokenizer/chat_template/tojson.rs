//! The filter `tojson`: JSON as Python's `json.dumps` writes it.

use super::budget::{Buffer, Result};
use super::value::{Value, python_float};
use super::vm::{Args, Vm};
use std::fmt::Write as _;

/// Columns that a level can be indented by.
pub(super) const WIDEST: usize = 64;

struct Format {
    indent: Option<String>,
    item: String,
    key: String,
    is_ascii: bool,
    is_sorted: bool,
}

/// Writes a value with the arguments of `json.dumps`: `ensure_ascii`, `indent`, `separators` and `sort_keys`.
pub(super) fn write(vm: &Vm<'_>, of: &Value, args: &Args) -> Result<Value> {
    // transformers: tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)
    for (name, _) in &args.named {
        if !["ensure_ascii", "indent", "separators", "sort_keys"].contains(&name.as_str()) {
            return Err(format!("tojson: the argument `{name}` is not known"));
        }
    }
    let indent = match args.get(1, "indent") {
        None | Some(Value::None | Value::Undefined) => None,
        Some(Value::Str(text)) if text.text.len() <= WIDEST => Some(text.text.clone()),
        Some(value) => {
            let columns = value.as_int().map(|n| n.max(0)).and_then(|n| usize::try_from(n).ok());
            let columns = columns.filter(|&n| n <= WIDEST);
            Some(" ".repeat(columns.ok_or_else(|| format!("tojson: the indent is too wide, at most {WIDEST}"))?))
        }
    };
    let item = if indent.is_some() { "," } else { ", " };
    let [item, key] = match args.get(2, "separators") {
        Some(Value::List(list)) => match list.items.as_slice() {
            [Value::Str(item), Value::Str(key)] => [item.text.clone(), key.text.clone()],
            _ => return Err("tojson: `separators` is not a pair of strings".to_owned()),
        },
        _ => [item.to_owned(), ": ".to_owned()],
    };
    let is_ascii = args.is_true(0, "ensure_ascii");
    let format = Format { indent, item, key, is_ascii, is_sorted: args.is_true(3, "sort_keys") };
    let mut out = Buffer::new(&vm.budget)?;
    format.value(vm, of, 0, &mut out)?;
    Ok(Value::from_buffer(out))
}

impl Format {
    fn value(&self, vm: &Vm<'_>, of: &Value, depth: usize, out: &mut Buffer) -> Result<()> {
        vm.budget.work(1)?;
        match of {
            Value::None => out.push("null"),
            Value::Bool(b) => out.push(if *b { "true" } else { "false" }),
            Value::Int(n) => out.push(&n.to_string()),
            Value::Float(x) => out.push(&json_float(*x)),
            Value::Str(text) => self.string(&text.text, out),
            Value::List(list) if list.has_places() => {
                let each = |out: &mut Buffer, item: &Value| self.value(vm, item, depth + 1, out);
                self.container(out, ["[", "]"], depth, list.items.iter(), each)
            }
            Value::Map(map) => {
                let mut entries: Vec<&(Value, Value)> = map.entries.iter().collect();
                if self.is_sorted {
                    vm.budget.work(8 * entries.len() as u64)?;
                    entries.sort_by(|a, b| a.0.as_str().cmp(&b.0.as_str()));
                }
                self.container(out, ["{", "}"], depth, entries.into_iter(), |out, (key, value)| {
                    match key {
                        Value::Str(text) => self.string(&text.text, out)?,
                        other => {
                            let mut text = Buffer::new(&vm.budget)?;
                            self.value(vm, other, depth, &mut text)?;
                            self.string(&text.text, out)?;
                        }
                    }
                    out.push(&self.key)?;
                    self.value(vm, value, depth + 1, out)
                })
            }
            other => Err(format!("tojson: {} cannot be written as JSON", other.kind())),
        }
    }

    fn container<T>(
        &self,
        out: &mut Buffer,
        [open, close]: [&str; 2],
        depth: usize,
        items: impl ExactSizeIterator<Item = T>,
        mut each: impl FnMut(&mut Buffer, T) -> Result<()>,
    ) -> Result<()> {
        let count = items.len();
        out.push(open)?;
        for (i, item) in items.enumerate() {
            out.push(if i > 0 { &self.item } else { "" })?;
            self.line(out, depth + 1)?;
            each(out, item)?;
        }
        if count > 0 {
            self.line(out, depth)?;
        }
        out.push(close)
    }

    fn line(&self, out: &mut Buffer, depth: usize) -> Result<()> {
        let Some(indent) = &self.indent else { return Ok(()) };
        out.push("\n")?;
        (0..depth).try_for_each(|_| out.push(indent))
    }

    fn string(&self, text: &str, out: &mut Buffer) -> Result<()> {
        let mut piece = String::from('"');
        for c in text.chars() {
            let _ = match c {
                '"' => write!(piece, "\\\""),
                '\\' => write!(piece, "\\\\"),
                '\n' => write!(piece, "\\n"),
                '\r' => write!(piece, "\\r"),
                '\t' => write!(piece, "\\t"),
                '\u{8}' => write!(piece, "\\b"),
                '\u{c}' => write!(piece, "\\f"),
                c if (c as u32) < 0x20 => write!(piece, "\\u{:04x}", c as u32),
                c if self.is_ascii && !c.is_ascii() => {
                    c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(piece, "\\u{unit:04x}"))
                }
                c => write!(piece, "{c}"),
            };
            if piece.len() > 4096 {
                out.push(&piece)?;
                piece.clear();
            }
        }
        piece.push('"');
        out.push(&piece)
    }
}

fn json_float(x: f64) -> String {
    match x {
        x if x.is_nan() => "NaN".to_owned(),
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        x => python_float(x),
    }
}
