//! Lists of a template, and what Python has beside them: tuples, views of dicts, generators.

use super::budget::{Budget, Charge, Result, VALUE_DEPTH};
use super::value::{VALUE, Value};
use std::cell::Cell;
use std::rc::Rc;

/// The Python type of a list of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListKind {
    List,
    /// It prints with round brackets.
    Tuple,
    /// The keys, values or items of a dict, by the name of the type: it has a length, but no places.
    View(&'static str),
    /// The result of `map`, `select` and their like: it is read once, is always true, and has neither length nor
    /// places.
    Generator,
}

/// A list of values.
#[derive(Debug)]
pub(super) struct List {
    pub(super) items: Vec<Value>,
    pub(super) kind: ListKind,
    /// The items of a generator that were read.
    read: Cell<usize>,
    pub(super) depth: u32,
    _charge: Charge,
}

impl List {
    pub(super) fn new(items: Vec<Value>, kind: ListKind, budget: &Rc<Budget>) -> Result<Rc<Self>> {
        let charge = budget.hold((items.len() + 1) * VALUE)?;
        let depth = depth_above(items.iter())?;
        Ok(Rc::new(List { items, kind, read: Cell::new(0), depth, _charge: charge }))
    }

    /// Whether its items have places: `x[0]`, `x[1:]`.
    pub(super) fn has_places(&self) -> bool {
        matches!(self.kind, ListKind::List | ListKind::Tuple)
    }

    /// Reads all items; a generator has none left afterwards.
    pub(super) fn rest(self: &Rc<Self>, budget: &Rc<Budget>) -> Result<Rc<Self>> {
        if self.kind != ListKind::Generator {
            return Ok(self.clone());
        }
        match self.read.replace(self.items.len()) {
            0 => Ok(self.clone()),
            read => List::new(self.items[read..].to_vec(), ListKind::Generator, budget),
        }
    }

    /// Reads the first item, of a generator the next one.
    pub(super) fn next(&self) -> Option<Value> {
        let at = self.read.get();
        let item = self.items.get(at).cloned();
        self.read.set(at + usize::from(self.kind == ListKind::Generator && item.is_some()));
        item
    }

    /// The brackets around the items where it is printed.
    pub(super) fn brackets(&self) -> [&'static str; 2] {
        match (self.kind, self.items.len()) {
            (ListKind::Tuple, 1) => ["(", ",)"],
            (ListKind::Tuple, _) => ["(", ")"],
            (ListKind::View(_), _) => ["([", "])"],
            _ => ["[", "]"],
        }
    }
}

/// The depth of a container of these values.
pub(super) fn depth_above<'a>(values: impl Iterator<Item = &'a Value>) -> Result<u32> {
    let mut depth = 0;
    for value in values {
        if matches!(value, Value::Namespace(_)) || matches!(value, Value::Loop(_)) {
            return Err(format!("a {} cannot be put into another value", value.kind()));
        }
        depth = depth.max(value.depth());
    }
    match depth < VALUE_DEPTH {
        true => Ok(depth + 1),
        false => Err(format!("lists and maps are nested more than {VALUE_DEPTH} deep")),
    }
}
