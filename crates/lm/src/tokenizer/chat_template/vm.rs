//! The state of a rendering, and the arguments of its calls.

use super::budget::{Budget, Buffer, DEPTH, Result};
use super::program::{Name, Program};
use super::value::{Scope, Value};
use std::rc::Rc;
use std::time::SystemTime;

/// A rendering.
pub(super) struct Vm<'p> {
    pub(super) program: &'p Program,
    pub(super) budget: Rc<Budget>,
    pub(super) constants: Vec<Value>,
    pub(super) scope: Rc<Scope>,
    /// The output of the template, and above it that of the macros and blocks that run.
    pub(super) out: Vec<Buffer>,
    pub(super) depth: usize,
    /// The line of the statement that runs.
    pub(super) line: u16,
    /// The time that `strftime_now` writes.
    pub(super) now: SystemTime,
    pub(super) builtins: [Option<Name>; 6],
}

/// The arguments of a call.
#[derive(Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(String, Value)>,
}

impl Args {
    /// The argument at a position or of a name.
    pub(super) fn get(&self, index: usize, name: &str) -> Option<&Value> {
        let named = || self.named.iter().find(|(known, _)| known == name).map(|(_, value)| value);
        self.positional.get(index).or_else(named)
    }

    /// As [`Args::get`], where it must be there.
    pub(super) fn need(&self, index: usize, name: &str) -> Result<&Value> {
        self.get(index, name).ok_or_else(|| format!("the argument `{name}` is missing"))
    }

    pub(super) fn text(&self, index: usize, name: &str) -> Result<&str> {
        let value = self.need(index, name)?;
        value.as_str().ok_or_else(|| format!("the argument `{name}` is {}, expected a string", value.kind()))
    }

    pub(super) fn int(&self, index: usize, name: &str) -> Result<Option<i128>> {
        match self.get(index, name) {
            None | Some(Value::None | Value::Undefined) => Ok(None),
            Some(value) => value
                .as_int()
                .map(Some)
                .ok_or_else(|| format!("the argument `{name}` is {}, expected an integer", value.kind())),
        }
    }

    pub(super) fn is_true(&self, index: usize, name: &str) -> bool {
        self.get(index, name).is_some_and(Value::is_true)
    }
}

impl Vm<'_> {
    /// Goes down a level, at most [`DEPTH`] of them: each takes a part of the thread's stack.
    pub(super) fn deeper<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.budget.work(1)?;
        if self.depth >= 2 * DEPTH {
            return Err("recursion: macros and loops call each other too deeply".to_owned());
        }
        self.depth += 1;
        let result = part(self);
        self.depth -= 1;
        result
    }
}
