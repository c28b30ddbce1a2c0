//! Runs the statements of a template.

use super::budget::{Budget, Buffer, Fault, Result};
use super::list::{List, ListKind};
use super::program::{Arg, Constant, Expr, Name, Program, Stmt, StmtKind, Target};
use super::strftime::strftime;
use super::value::{Function, Loop, Macro, Namespace, Scope, Value};
use super::vm::{Args, Vm};
use super::{filters, methods};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::SystemTime;

/// As many items as jinja2's sandbox lets `range` have.
const RANGE: usize = 100_000;

/// The continuation after a statement.
#[derive(PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

const BUILTINS: [(&str, Option<Function>); 6] = [
    ("range", Some(Function::Range)),
    ("namespace", Some(Function::Namespace)),
    ("dict", Some(Function::Dict)),
    ("raise_exception", Some(Function::RaiseException)),
    ("strftime_now", Some(Function::StrftimeNow)),
    ("loop", None),
];

impl<'p> Vm<'p> {
    /// Renders `program` with the entries of a map as variables. A fault comes with its line.
    pub(super) fn run(
        program: &'p Program,
        context: &Value,
        now: SystemTime,
    ) -> std::result::Result<String, (Fault, u16)> {
        let mut vm = Vm::new(program, context, now).map_err(|fault| (fault, 1))?;
        vm.body(&program.body).map_err(|fault| (fault, vm.line))?;
        Ok(vm.out.pop().map(|out| out.into_parts().0).unwrap_or_default())
    }

    fn new(program: &'p Program, context: &Value, now: SystemTime) -> Result<Self> {
        let budget = Budget::new();
        let constant = |c: &Constant| {
            Ok(match c {
                Constant::Undefined => Value::Undefined,
                Constant::None => Value::None,
                Constant::Bool(b) => Value::Bool(*b),
                Constant::Int(n) => Value::Int(*n),
                Constant::Float(x) => Value::Float(*x),
                Constant::Str(s) => Value::string(s.as_str(), &budget)?,
            })
        };
        let constants = program.constants.iter().map(constant).collect::<Result<_>>()?;
        let place = |name: &str| program.names.iter().position(|known| known == name).map(|i| i as Name);
        let globals = Rc::new(Scope::default());
        if let Value::Map(map) = context {
            for (key, value) in &map.entries {
                if let Some(name) = key.as_str().and_then(place) {
                    globals.set(name, value.clone());
                }
            }
        }
        let scope = Scope::inside(globals);
        let out = vec![Buffer::new(&budget)?];
        let builtins = BUILTINS.map(|(name, _)| place(name));
        Ok(Vm { now, program, budget, constants, scope, out, depth: 0, line: 1, builtins })
    }

    fn body(&mut self, body: &'p [Stmt]) -> Result<Flow> {
        for stmt in body {
            let flow = self.deeper(|vm| vm.stmt(stmt))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn stmt(&mut self, stmt: &'p Stmt) -> Result<Flow> {
        self.line = stmt.line;
        match &stmt.kind {
            StmtKind::Raw(text) => self.write(text)?,
            StmtKind::Emit(expr) => {
                let value = self.expr(expr)?;
                let (out, budget) = (self.out.last_mut(), self.budget.clone());
                out.map_or(Ok(()), |out| value.print(out, &budget))?;
            }
            StmtKind::For(index) => {
                let items = self.expr(&self.program.loops[*index].iter)?;
                self.line = stmt.line;
                self.repeat(*index, &items, 0)?;
            }
            StmtKind::If(test, yes, no) => {
                let body = if self.expr(test)?.is_true() { yes } else { no };
                return self.body(body);
            }
            StmtKind::With(assignments, body) => {
                return self.scoped(Scope::inside(self.scope.clone()), |vm| {
                    for (target, value) in assignments {
                        let value = vm.expr(value)?;
                        vm.assign(target, value)?;
                    }
                    vm.body(body)
                });
            }
            StmtKind::Set(target, value) => {
                let value = self.expr(value)?;
                self.assign(target, value)?;
            }
            StmtKind::SetBlock(target, filter, body) => {
                let text = self.captured(|vm| vm.inside(body))?;
                let value = match filter {
                    Some(filter) => self.filter_of(filter, text)?,
                    None => text,
                };
                self.assign(target, value)?;
            }
            StmtKind::FilterBlock(filter, body) => {
                let text = self.captured(|vm| vm.inside(body))?;
                let value = self.filter_of(filter, text)?.to_text(&self.budget)?;
                self.write(value.as_str().unwrap_or_default())?;
            }
            StmtKind::Scope(body) => return self.inside(body),
            StmtKind::Macro(name, index) => {
                let value = Value::Macro(Macro { index: *index, scope: Rc::downgrade(&self.scope) });
                self.scope.set(*name, value);
            }
            StmtKind::CallBlock(call, index) => self.call_block(call, *index)?,
            StmtKind::Do(call) => drop(self.expr(call)?),
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.out.last_mut().map_or(Ok(()), |out| out.push(text))
    }

    /// Runs a body in a scope of its own.
    fn inside(&mut self, body: &'p [Stmt]) -> Result<Flow> {
        self.scoped(Scope::inside(self.scope.clone()), |vm| vm.body(body))
    }

    fn scoped<T>(&mut self, scope: Rc<Scope>, part: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let outer = std::mem::replace(&mut self.scope, scope);
        let result = part(self);
        self.scope = outer;
        result
    }

    /// The text that a part writes.
    fn captured<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T>) -> Result<Value> {
        self.out.push(Buffer::new(&self.budget)?);
        let result = part(self);
        let text = self.out.pop().map_or(Value::Undefined, Value::from_buffer);
        result.map(|_| text)
    }

    fn assign(&mut self, target: &'p Target, value: Value) -> Result<()> {
        match target {
            Target::Name(name) => self.scope.set(*name, value),
            Target::Attribute(of, name) => match self.expr(of)? {
                Value::Namespace(of) => of.set(name, value)?,
                other => return Err(format!("`{name}` of a {} cannot be set; use a namespace", other.kind())),
            },
            Target::Several(targets) => {
                let values = value.items(&self.budget)?;
                if values.items.len() != targets.len() {
                    return Err(format!("{} values for {} names", values.items.len(), targets.len()));
                }
                for (target, value) in targets.iter().zip(&values.items) {
                    self.assign(target, value.clone())?;
                }
            }
        }
        Ok(())
    }

    /// Runs a loop over the items of a value.
    fn repeat(&mut self, index: usize, over: &Value, level: usize) -> Result<()> {
        let part = &self.program.loops[index];
        let mut items = over.items(&self.budget)?;
        if let Some(filter) = &part.filter {
            let mut kept = Vec::new();
            for item in &items.items {
                let scope = Scope::inside(self.scope.clone());
                let keep = self.scoped(scope, |vm| {
                    vm.assign(&part.target, item.clone())?;
                    vm.expr(filter)
                })?;
                if keep.is_true() {
                    kept.push(item.clone());
                }
            }
            items = List::new(kept, ListKind::List, &self.budget)?;
        }
        if items.items.is_empty() {
            return self.inside(&part.otherwise).map(|_| ());
        }
        let [.., name] = self.builtins;
        let state = Rc::new(Loop {
            items: items.clone(),
            index: Cell::new(0),
            level,
            changed: RefCell::new(None),
            recursive: part.is_recursive.then_some(index),
            scope: Rc::downgrade(&self.scope),
        });
        for (index, item) in items.items.iter().enumerate() {
            state.index.set(index);
            let flow = self.scoped(Scope::inside(self.scope.clone()), |vm| {
                if let Some(name) = name {
                    vm.scope.set(name, Value::Loop(state.clone()));
                }
                vm.assign(&part.target, item.clone())?;
                vm.body(&part.body)
            })?;
            if flow == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    fn call_block(&mut self, call: &'p Expr, index: usize) -> Result<()> {
        let Expr::Call(of, args) = call else { return Err("a call block needs a call".to_owned()) };
        let caller = Value::Macro(Macro { index, scope: Rc::downgrade(&self.scope) });
        let mut args = self.args(args)?;
        let value = match self.expr(of)? {
            Value::Macro(of) => self.call_macro(&of, args, Some(caller))?,
            other => {
                args.named.push(("caller".to_owned(), caller));
                self.call(other, args)?
            }
        };
        let text = value.to_text(&self.budget)?;
        self.write(text.as_str().unwrap_or_default())
    }

    pub(super) fn args(&mut self, args: &'p [Arg]) -> Result<Args> {
        let mut values = Args::default();
        for arg in args {
            match arg {
                Arg::Positional(value) => values.positional.push(self.expr(value)?),
                Arg::Keyword(name, value) => values.named.push((name.clone(), self.expr(value)?)),
            }
        }
        Ok(values)
    }

    pub(super) fn variable(&self, name: Name) -> Value {
        let builtin = || {
            let index = self.builtins.iter().position(|known| *known == Some(name))?;
            BUILTINS[index].1.map(Value::Function)
        };
        self.scope.get(name).or_else(builtin).unwrap_or(Value::Undefined)
    }

    pub(super) fn name(&self, name: Name) -> &'p str {
        self.program.names.get(name as usize).map_or("", String::as_str)
    }

    pub(super) fn constant(&self, index: usize) -> Value {
        self.constants.get(index).cloned().unwrap_or(Value::Undefined)
    }

    /// Applies the filter of a block to its text.
    fn filter_of(&mut self, filter: &'p Expr, text: Value) -> Result<Value> {
        let Expr::Filter(name, of, args) = filter else { return Err("a block needs a filter".to_owned()) };
        let text = match of {
            Some(of) => self.filter_of(of, text)?,
            None => text,
        };
        let args = self.args(args)?;
        filters::apply(self, name, text, &args)
    }

    pub(super) fn call(&mut self, of: Value, args: Args) -> Result<Value> {
        match of {
            Value::Macro(of) => self.call_macro(&of, args, None),
            Value::Function(function) => self.call_function(function, &args),
            Value::Loop(of) => {
                let (Some(index), Some(scope)) = (of.recursive, of.scope.upgrade()) else {
                    return Err("only a recursive loop can be called".to_owned());
                };
                let items = args.need(0, "iterable")?.clone();
                let level = of.level + 1;
                self.captured(|vm| vm.deeper(|vm| vm.scoped(scope, |vm| vm.repeat(index, &items, level))))
            }
            other => Err(format!("{} cannot be called", other.kind())),
        }
    }

    fn call_macro(&mut self, of: &Macro, mut args: Args, caller: Option<Value>) -> Result<Value> {
        let decl = &self.program.macros[of.index];
        let Some(outer) = of.scope.upgrade() else {
            return Err(format!("macro `{}` is called outside its scope", decl.name));
        };
        let line = self.line;
        let scope = Scope::inside(outer);
        if args.positional.len() > decl.parameters.len() {
            return Err(format!("macro `{}` takes {} arguments", decl.name, decl.parameters.len()));
        }
        let first = decl.parameters.len() - decl.defaults.len();
        let mut positional = std::mem::take(&mut args.positional).into_iter();
        let caller_name = self.program.names.iter().position(|name| name == "caller");
        if let (Some(name), Some(caller)) = (caller_name, caller) {
            scope.set(name as Name, caller);
        }
        let text = self.captured(|vm| {
            vm.scoped(scope, |vm| {
                for (i, &parameter) in decl.parameters.iter().enumerate() {
                    let named = args.named.iter().position(|(name, _)| name == vm.name(parameter));
                    let value = match (positional.next(), named) {
                        (Some(value), None) => value,
                        (None, Some(at)) => args.named.remove(at).1,
                        (Some(_), Some(_)) => return Err(format!("`{}` is given twice", vm.name(parameter))),
                        (None, None) if i >= first => vm.expr(&decl.defaults[i - first])?,
                        (None, None) => Value::Undefined,
                    };
                    vm.scope.set(parameter, value);
                }
                if let Some((name, _)) = args.named.first() {
                    return Err(format!("macro `{}` has no parameter `{name}`", decl.name));
                }
                vm.body(&decl.body)
            })
        })?;
        self.line = line;
        Ok(text)
    }

    fn call_function(&mut self, function: Function, args: &Args) -> Result<Value> {
        match function {
            Function::Range => self.range(args),
            Function::Namespace | Function::Dict => {
                let mut entries = Vec::new();
                if let Some(Value::Map(map)) = args.positional.first() {
                    entries.clone_from(&map.entries);
                }
                for (name, value) in &args.named {
                    entries.push((Value::string(name.as_str(), &self.budget)?, value.clone()));
                }
                if function == Function::Dict {
                    return Value::map(entries, &self.budget);
                }
                let namespace = Namespace::new(&self.budget)?;
                for (key, value) in entries {
                    namespace.set(key.as_str().unwrap_or_default(), value)?;
                }
                Ok(Value::Namespace(Rc::new(namespace)))
            }
            Function::RaiseException => Err(args.text(0, "message")?.to_owned()),
            Function::StrftimeNow => {
                let format = args.text(0, "format")?;
                self.budget.touch(format.len())?;
                let _held = self.budget.hold(16 * format.len())?;
                Value::string(strftime(format, self.now), &self.budget)
            }
        }
    }

    fn range(&self, args: &Args) -> Result<Value> {
        let number = |i| args.int(i, "number");
        let (start, stop) = match (number(0)?, number(1)?) {
            (Some(stop), None) => (0, stop),
            (Some(start), Some(stop)) => (start, stop),
            (None, _) => return Err("range: a number is missing".to_owned()),
        };
        let step = number(2)?.unwrap_or(1);
        if step == 0 {
            return Err("range: the step is 0".to_owned());
        }
        let span = if step > 0 { stop.saturating_sub(start) } else { start.saturating_sub(stop) };
        let count = usize::try_from(span.max(0).unsigned_abs().div_ceil(step.unsigned_abs()));
        let count = count.ok().filter(|&count| count <= RANGE);
        let count = count.ok_or_else(|| format!("range: more than {RANGE} numbers are too many"))?;
        self.budget.work(count as u64)?;
        Value::list((0..count).map(|i| Value::Int(start + i as i128 * step)).collect(), &self.budget)
    }

    /// An attribute of a value, of the variable `loop` among them.
    pub(super) fn attribute(&self, of: &Value, name: &str) -> Result<Value> {
        let found = match of {
            Value::Namespace(of) => of.get(name),
            Value::Loop(of) => of.attribute(name),
            Value::Map(_) => of.lookup(&Value::string(name, &self.budget)?, &self.budget)?,
            _ => None,
        };
        Ok(found.unwrap_or(Value::Undefined))
    }

    pub(super) fn method(&mut self, of: &Value, name: &str, args: Args) -> Result<Value> {
        match of {
            Value::Loop(state) if name == "cycle" => {
                let index = state.index.get().checked_rem(args.positional.len());
                index.map(|i| args.positional[i].clone()).ok_or_else(|| "cycle: no items were given".to_owned())
            }
            Value::Loop(state) if name == "changed" => {
                let value = Value::tuple(args.positional, &self.budget)?;
                let mut last = state.changed.borrow_mut();
                let is_same = last.as_ref().is_some_and(|last| last.equals(&value, &self.budget) == Ok(true));
                *last = Some(value);
                Ok(Value::Bool(!is_same))
            }
            Value::Namespace(_) | Value::Loop(_) => {
                let value = self.attribute(of, name)?;
                self.call(value, args)
            }
            _ => match methods::call(self, of, name, &args)? {
                Some(value) => Ok(value),
                None => match self.attribute(of, name)? {
                    Value::Undefined => Err(unknown_method(of, name)),
                    value => self.call(value, args),
                },
            },
        }
    }
}

fn unknown_method(of: &Value, name: &str) -> Fault {
    format!("{} has no method named {name}", of.kind())
}
