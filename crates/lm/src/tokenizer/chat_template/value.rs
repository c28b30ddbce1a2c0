//! Values of a template. Each holds its memory in the budget of the rendering.

use super::budget::{Budget, Buffer, Charge, Result};
use super::list::{List, ListKind, depth_above};
use super::program::Name;
use serde_json::Value as Json;
use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::fmt::Write as _;
use std::rc::{Rc, Weak};

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Undefined,
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<Text>),
    List(Rc<List>),
    Map(Rc<Map>),
    Namespace(Rc<Namespace>),
    Loop(Rc<Loop>),
    Macro(Macro),
    Function(Function),
}

/// A string.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) text: String,
    /// Whether `+` escapes what is added: the result of `safe` or `escape`.
    pub(super) is_markup: bool,
    _charge: Charge,
}

/// Keys and values in the order of insertion.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) entries: Vec<(Value, Value)>,
    depth: u32,
    _charge: Charge,
}

/// The only value that a template can change. No other value can hold one, so there are no cycles.
#[derive(Debug)]
pub(super) struct Namespace {
    pub(super) entries: RefCell<Vec<(Rc<str>, Value)>>,
    charge: RefCell<Charge>,
}

/// The variable `loop` of a loop.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) items: Rc<List>,
    pub(super) index: Cell<usize>,
    /// Loops around this one in a recursive loop.
    pub(super) level: usize,
    pub(super) changed: RefCell<Option<Value>>,
    /// The place of a recursive loop in the program, to call it again.
    pub(super) recursive: Option<usize>,
    pub(super) scope: Weak<Scope>,
}

/// A macro: its place in the program and the scope that it was declared in. A strong handle would be a cycle: the scope
/// holds the macro.
#[derive(Clone, Debug)]
pub(super) struct Macro {
    pub(super) index: usize,
    pub(super) scope: Weak<Scope>,
}

/// Variables, and the scope around them.
#[derive(Debug, Default)]
pub(super) struct Scope {
    variables: RefCell<Vec<(Name, Value)>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    pub(super) fn inside(parent: Rc<Scope>) -> Rc<Self> {
        Rc::new(Scope { variables: RefCell::default(), parent: Some(parent) })
    }

    pub(super) fn get(&self, name: Name) -> Option<Value> {
        let mut scope = Some(self);
        while let Some(Scope { variables, parent }) = scope {
            if let Some((_, value)) = variables.borrow().iter().find(|(known, _)| *known == name) {
                return Some(value.clone());
            }
            scope = parent.as_deref();
        }
        None
    }

    pub(super) fn set(&self, name: Name, value: Value) {
        let mut variables = self.variables.borrow_mut();
        match variables.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => variables.push((name, value)),
        }
    }
}

/// A function of the environment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Function {
    Range,
    Namespace,
    Dict,
    RaiseException,
    StrftimeNow,
}

pub(super) const VALUE: usize = size_of::<Value>();
/// Bytes of a string beside its text, the allocator's own among them.
const TEXT: usize = 96;

impl Value {
    pub(super) fn string(text: impl Into<String>, budget: &Rc<Budget>) -> Result<Self> {
        let text = text.into();
        let charge = budget.hold(text.len() + TEXT)?;
        Ok(Value::Str(Rc::new(Text { text, is_markup: false, _charge: charge })))
    }

    pub(super) fn from_buffer(buffer: Buffer) -> Self {
        let (text, charge) = buffer.into_parts();
        Value::Str(Rc::new(Text { text, is_markup: false, _charge: charge }))
    }

    pub(super) fn list(items: Vec<Value>, budget: &Rc<Budget>) -> Result<Self> {
        Ok(Value::List(List::new(items, ListKind::List, budget)?))
    }

    /// What a generator of these values is.
    pub(super) fn generator(items: Vec<Value>, budget: &Rc<Budget>) -> Result<Self> {
        Ok(Value::List(List::new(items, ListKind::Generator, budget)?))
    }

    /// A string that `+` does not escape.
    pub(super) fn markup(text: String, budget: &Rc<Budget>) -> Result<Self> {
        let charge = budget.hold(text.len() + TEXT)?;
        Ok(Value::Str(Rc::new(Text { text, is_markup: true, _charge: charge })))
    }

    pub(super) fn tuple(items: Vec<Value>, budget: &Rc<Budget>) -> Result<Self> {
        Ok(Value::List(List::new(items, ListKind::Tuple, budget)?))
    }

    /// A map; a later entry replaces an earlier one of the same key.
    pub(super) fn map(entries: Vec<(Value, Value)>, budget: &Rc<Budget>) -> Result<Self> {
        let charge = budget.hold((2 * entries.len() + 1) * VALUE)?;
        let depth = depth_above(entries.iter().flat_map(|(k, v)| [k, v]))?;
        Ok(Value::Map(Rc::new(Map { entries, depth, _charge: charge })))
    }

    pub(super) fn from_json(json: &Json, budget: &Rc<Budget>) -> Result<Self> {
        Ok(match json {
            Json::Null => Value::None,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match (n.as_i128(), n.as_f64()) {
                (Some(n), _) => Value::Int(n),
                (None, n) => Value::Float(n.unwrap_or(f64::NAN)),
            },
            Json::String(s) => Value::string(s.as_str(), budget)?,
            Json::Array(items) => {
                Value::list(items.iter().map(|item| Value::from_json(item, budget)).collect::<Result<_>>()?, budget)?
            }
            Json::Object(map) => {
                let entry = |(key, item): (&String, &Json)| {
                    Ok((Value::string(key.as_str(), budget)?, Value::from_json(item, budget)?))
                };
                Value::map(map.iter().map(entry).collect::<Result<_>>()?, budget)?
            }
        })
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        if let Value::Str(text) = self { Some(&text.text) } else { None }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Value::Undefined | Value::None => false,
            Value::Bool(b) => *b,
            Value::Int(n) => *n != 0,
            Value::Float(x) => *x != 0.0,
            Value::Str(text) => !text.text.is_empty(),
            Value::List(list) => list.kind == ListKind::Generator || !list.items.is_empty(),
            Value::Map(map) => !map.entries.is_empty(),
            Value::Namespace(_) | Value::Loop(_) | Value::Macro(_) | Value::Function(_) => true,
        }
    }

    /// As Python calls the type.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Undefined => "undefined",
            Value::None => "none",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float",
            Value::Str(_) => "string",
            Value::List(list) => match list.kind {
                ListKind::List => "list",
                ListKind::Tuple => "tuple",
                ListKind::View(name) => name,
                ListKind::Generator => "generator",
            },
            Value::Map(_) => "dict",
            Value::Namespace(_) => "namespace",
            Value::Loop(_) => "loop",
            Value::Macro(_) | Value::Function(_) => "function",
        }
    }

    /// The integer that a number or a boolean is.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Value::Int(n) => Some(*n),
            Value::Bool(b) => Some(i128::from(*b)),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        if let Value::Float(x) = self { Some(*x) } else { self.as_int().map(|n| n as f64) }
    }

    pub(super) fn depth(&self) -> u32 {
        match self {
            Value::List(list) => list.depth,
            Value::Map(map) => map.depth,
            _ => 0,
        }
    }

    /// The value under a key of a map or a namespace.
    pub(super) fn lookup(&self, key: &Value, budget: &Budget) -> Result<Option<Value>> {
        match (self, key) {
            (Value::Map(map), _) => {
                budget.work(map.entries.len() as u64 / 8 + 1)?;
                for (known, value) in &map.entries {
                    if known.equals(key, budget)? {
                        return Ok(Some(value.clone()));
                    }
                }
                Ok(None)
            }
            (Value::Namespace(of), Value::Str(key)) => Ok(of.get(&key.text)),
            _ => Ok(None),
        }
    }

    pub(super) fn equals(&self, other: &Value, budget: &Budget) -> Result<bool> {
        budget.work(1)?;
        Ok(match (self, other) {
            (Value::Undefined | Value::None, Value::Undefined | Value::None) => self.kind() == other.kind(),
            (Value::Str(a), Value::Str(b)) => {
                if a.text.len() == b.text.len() {
                    budget.touch(a.text.len())?;
                }
                a.text == b.text
            }
            (Value::List(a), Value::List(b)) => {
                if a.kind == ListKind::Generator || a.kind != b.kind || a.items.len() != b.items.len() {
                    return Ok(Rc::ptr_eq(a, b));
                }
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b, budget)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Value::Map(a), Value::Map(b)) => {
                if a.entries.len() != b.entries.len() {
                    return Ok(false);
                }
                for (key, value) in &a.entries {
                    match other.lookup(key, budget)? {
                        Some(found) if value.equals(&found, budget)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Value::Namespace(a), Value::Namespace(b)) => Rc::ptr_eq(a, b),
            (Value::Function(a), Value::Function(b)) => a == b,
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => matches!((self.as_float(), other.as_float()), (Some(a), Some(b)) if a == b),
            },
        })
    }

    pub(super) fn compare(&self, other: &Value, budget: &Budget) -> Result<Ordering> {
        budget.work(1)?;
        let not = || format!("{} and {} have no order", self.kind(), other.kind());
        match (self, other) {
            (Value::Str(a), Value::Str(b)) => {
                budget.touch(a.text.len().min(b.text.len()))?;
                Ok(a.text.cmp(&b.text))
            }
            (Value::List(a), Value::List(b)) => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    let order = a.compare(b, budget)?;
                    if order.is_ne() {
                        return Ok(order);
                    }
                }
                Ok(a.items.len().cmp(&b.items.len()))
            }
            _ => match (self.as_int(), other.as_int(), self.as_float(), other.as_float()) {
                (Some(a), Some(b), ..) => Ok(a.cmp(&b)),
                (_, _, Some(a), Some(b)) => a.partial_cmp(&b).ok_or_else(not),
                _ => Err(not()),
            },
        }
    }

    /// Writes the value as Python's `str` does.
    pub(super) fn print(&self, out: &mut Buffer, budget: &Budget) -> Result<()> {
        match self {
            Value::Undefined => Ok(()),
            Value::Str(text) => out.push(&text.text),
            _ => self.repr(out, budget),
        }
    }

    /// Writes the value as Python's `repr` does.
    fn repr(&self, out: &mut Buffer, budget: &Budget) -> Result<()> {
        budget.work(1)?;
        match self {
            Value::Undefined => out.push("Undefined"),
            Value::None => out.push("None"),
            Value::Bool(b) => out.push(if *b { "True" } else { "False" }),
            Value::Int(n) => out.push(&n.to_string()),
            Value::Float(x) => out.push(&python_float(*x)),
            Value::Str(text) => python_string(&text.text, out),
            Value::List(list) if list.kind == ListKind::Generator => out.push("<generator object>"),
            Value::List(list) => {
                let [open, close] = list.brackets();
                out.push(if let ListKind::View(name) = list.kind { name } else { "" })?;
                out.push(open)?;
                for (i, item) in list.items.iter().enumerate() {
                    out.push(if i > 0 { ", " } else { "" })?;
                    item.repr(out, budget)?;
                }
                out.push(close)
            }
            Value::Map(map) => {
                out.push("{")?;
                for (i, (key, value)) in map.entries.iter().enumerate() {
                    out.push(if i > 0 { ", " } else { "" })?;
                    key.repr(out, budget)?;
                    out.push(": ")?;
                    value.repr(out, budget)?;
                }
                out.push("}")
            }
            Value::Namespace(_) | Value::Loop(_) | Value::Macro(_) | Value::Function(_) => {
                out.push(&format!("<{}>", self.kind()))
            }
        }
    }

    /// The text that [`Value::print`] writes.
    pub(super) fn to_text(&self, budget: &Rc<Budget>) -> Result<Value> {
        if let Value::Str(_) = self {
            return Ok(self.clone());
        }
        let mut out = Buffer::new(budget)?;
        self.print(&mut out, budget)?;
        Ok(Value::from_buffer(out))
    }

    /// The items that a loop goes through: of a list, the keys of a map, the characters of a string, none of undefined.
    pub(super) fn items(&self, budget: &Rc<Budget>) -> Result<Rc<List>> {
        match self {
            Value::List(list) => list.rest(budget),
            Value::Undefined => List::new(Vec::new(), ListKind::List, budget),
            Value::Map(map) => {
                List::new(map.entries.iter().map(|(key, _)| key.clone()).collect(), ListKind::List, budget)
            }
            Value::Str(text) => {
                let _held = budget.hold(text.text.len().saturating_mul(VALUE))?;
                let characters = text.text.chars().map(|c| Value::string(c, budget)).collect::<Result<_>>()?;
                List::new(characters, ListKind::List, budget)
            }
            other => Err(format!("{} is not iterable", other.kind())),
        }
    }
}

impl Namespace {
    pub(super) fn new(budget: &Rc<Budget>) -> Result<Self> {
        Ok(Namespace { entries: RefCell::default(), charge: RefCell::new(budget.hold(VALUE)?) })
    }

    pub(super) fn get(&self, key: &str) -> Option<Value> {
        self.entries.borrow().iter().find(|(known, _)| **known == *key).map(|(_, value)| value.clone())
    }

    pub(super) fn set(&self, key: &str, value: Value) -> Result<()> {
        depth_above([&value].into_iter())?;
        let mut entries = self.entries.borrow_mut();
        match entries.iter_mut().find(|(known, _)| **known == *key) {
            Some((_, old)) => *old = value,
            None => {
                self.charge.borrow_mut().grow(key.len() + 2 * VALUE)?;
                entries.push((key.into(), value));
            }
        }
        Ok(())
    }
}

/// A float as Python's `repr` writes it: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn python_float(x: f64) -> String {
    if x.is_nan() || x.is_infinite() {
        return if x.is_nan() {
            "nan"
        } else if x > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x == 0.0 || (-4..16).contains(&exponent) {
        return format!("{x:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// A string in quotes, as Python's `repr` writes it.
fn python_string(text: &str, out: &mut Buffer) -> Result<()> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut piece = String::from(quote);
    for c in text.chars() {
        let _ = match c {
            '\n' => write!(piece, "\\n"),
            '\r' => write!(piece, "\\r"),
            '\t' => write!(piece, "\\t"),
            '\\' => write!(piece, "\\\\"),
            c if c == quote => write!(piece, "\\{c}"),
            c if c.is_control() => write!(piece, "\\x{:02x}", c as u32),
            c => write!(piece, "{c}"),
        };
        if piece.len() > 4096 {
            out.push(&piece)?;
            piece.clear();
        }
    }
    piece.push(quote);
    out.push(&piece)
}

impl Loop {
    /// An attribute of the variable `loop`.
    pub(super) fn attribute(&self, name: &str) -> Option<Value> {
        let (index, length) = (self.index.get(), self.items.items.len());
        let number = |n: usize| Some(Value::Int(n as i128));
        match name {
            "index" => number(index + 1),
            "index0" => number(index),
            "revindex" => number(length - index),
            "revindex0" => number(length - index - 1),
            "first" => Some(Value::Bool(index == 0)),
            "last" => Some(Value::Bool(index + 1 == length)),
            "length" => number(length),
            "depth" => number(self.level + 1),
            "depth0" => number(self.level),
            "previtem" => index.checked_sub(1).and_then(|i| self.items.items.get(i).cloned()),
            "nextitem" => self.items.items.get(index + 1).cloned(),
            _ => None,
        }
    }
}
