//! Evaluates the expressions of a template.

use super::budget::{Buffer, Result};
use super::filters;
use super::list::{List, ListKind};
use super::predicates::is;
use super::program::Expr;
use super::value::Value;
use super::vm::Vm;
use minijinja::machinery::ast::{BinOpKind, CompareOpKind};
use std::cmp::Ordering;

impl<'p> Vm<'p> {
    pub(super) fn expr(&mut self, expr: &'p Expr) -> Result<Value> {
        self.deeper(|vm| vm.shallow(expr))
    }

    fn shallow(&mut self, expr: &'p Expr) -> Result<Value> {
        match expr {
            Expr::Var(name) => Ok(self.variable(*name)),
            Expr::Const(index) => Ok(self.constant(*index)),
            Expr::Slice(parts) => self.slice(parts),
            Expr::Not(of) => Ok(Value::Bool(!self.expr(of)?.is_true())),
            Expr::Neg(of) => match self.expr(of)? {
                Value::Float(x) => Ok(Value::Float(-x)),
                value => {
                    let n = value.as_int().and_then(i128::checked_neg);
                    n.map(Value::Int).ok_or_else(|| format!("{} cannot be negated", value.kind()))
                }
            },
            Expr::Binary(op, sides) => self.binary(*op, sides),
            Expr::Compare(first, rest) => {
                let mut left = self.expr(first)?;
                for (op, right) in rest {
                    let right = self.expr(right)?;
                    if !self.compare(*op, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expr::If(parts) => {
                let [test, yes, no] = &**parts;
                let test = test.as_ref().map_or(Ok(Value::Undefined), |e| self.expr(e))?;
                let part = if test.is_true() { yes } else { no };
                part.as_ref().map_or(Ok(Value::Undefined), |e| self.expr(e))
            }
            Expr::Filter(name, of, args) => {
                let of = of.as_ref().map_or(Ok(Value::Undefined), |e| self.expr(e))?;
                let args = self.args(args)?;
                filters::apply(self, name, of, &args)
            }
            Expr::Test(name, of, args) => {
                let of = self.expr(of)?;
                let args = self.args(args)?;
                is(self, name, &of, &args).map(Value::Bool)
            }
            Expr::Attribute(of, name) => {
                let value = self.defined(of)?;
                self.attribute(&value, name)
            }
            Expr::Item(parts) => {
                let [of, key] = &**parts;
                let (of, key) = (self.defined(of)?, self.expr(key)?);
                self.item(&of, &key)
            }
            Expr::Call(of, args) => self.call_expr(of, args),
            Expr::List(items) => {
                let items = items.iter().map(|e| self.expr(e)).collect::<Result<_>>()?;
                Value::list(items, &self.budget)
            }
            Expr::Tuple(items) => {
                let items = items.iter().map(|e| self.expr(e)).collect::<Result<_>>()?;
                Value::tuple(items, &self.budget)
            }
            Expr::Map(entries) => self.map(entries),
        }
    }

    fn map(&mut self, parts: &'p [[Expr; 2]]) -> Result<Value> {
        let mut entries: Vec<(Value, Value)> = Vec::with_capacity(parts.len());
        for [key, value] in parts {
            let (key, value) = (self.expr(key)?, self.expr(value)?);
            let mut at = None;
            for (i, (known, _)) in entries.iter().enumerate() {
                if known.equals(&key, &self.budget)? {
                    at = Some(i);
                }
            }
            match at {
                Some(i) => entries[i].1 = value,
                None => entries.push((key, value)),
            }
        }
        Value::map(entries, &self.budget)
    }

    /// A value of which something is asked, which undefined values do not have.
    fn defined(&mut self, expr: &'p Expr) -> Result<Value> {
        match (self.expr(expr)?, expr) {
            (Value::Undefined, Expr::Var(name)) => Err(format!("`{}` is undefined", self.name(*name))),
            (Value::Undefined, Expr::Attribute(_, name)) => Err(format!("`{name}` is undefined")),
            (Value::Undefined, _) => Err("an undefined value has no attributes".to_owned()),
            (value, _) => Ok(value),
        }
    }

    fn call_expr(&mut self, of: &'p Expr, args: &'p [super::program::Arg]) -> Result<Value> {
        if let Expr::Attribute(of, name) = of {
            let value = self.defined(of)?;
            let args = self.args(args)?;
            return self.method(&value, name, args);
        }
        let function = self.expr(of)?;
        if let (Value::Undefined, Expr::Var(name)) = (&function, of) {
            return Err(format!("function `{}` is not known", self.name(*name)));
        }
        let args = self.args(args)?;
        self.call(function, args)
    }

    fn item(&self, of: &Value, key: &Value) -> Result<Value> {
        let place = |length: usize| {
            let index = key.as_int()?;
            usize::try_from(if index < 0 { index + length as i128 } else { index }).ok()
        };
        Ok(match of {
            Value::List(list) if !list.has_places() => None,
            Value::List(list) => place(list.items.len()).and_then(|i| list.items.get(i).cloned()),
            Value::Str(text) => {
                self.budget.touch(text.text.len())?;
                let length = if key.as_int().is_some_and(|i| i < 0) { text.text.chars().count() } else { 0 };
                let found = place(length).and_then(|i| text.text.chars().nth(i));
                found.map(|c| Value::string(c, &self.budget)).transpose()?
            }
            _ => match key.as_str() {
                Some(name) if !matches!(of, Value::Map(_)) => Some(self.attribute(of, name)?),
                _ => of.lookup(key, &self.budget)?,
            },
        }
        .unwrap_or(Value::Undefined))
    }

    fn slice(&mut self, parts: &'p [Option<Expr>; 4]) -> Result<Value> {
        let mut values = Vec::new();
        for part in parts {
            values.push(part.as_ref().map_or(Ok(Value::None), |e| self.expr(e))?);
        }
        let number = |i: usize| match &values[i] {
            Value::None | Value::Undefined => Ok(None),
            value => value.as_int().map(Some).ok_or_else(|| format!("a slice by {}", value.kind())),
        };
        let (start, stop, step) = (number(1)?, number(2)?, number(3)?.unwrap_or(1));
        if step == 0 {
            return Err("a slice by steps of 0".to_owned());
        }
        match &values[0] {
            Value::List(list) if list.has_places() => {
                self.budget.work(list.items.len() as u64)?;
                let picked = indices(list.items.len(), start, stop, step).map(|i| list.items[i].clone());
                Ok(Value::List(List::new(picked.collect(), list.kind, &self.budget)?))
            }
            Value::Str(text) => {
                let _held = self.budget.hold(4 * text.text.len())?;
                let all: Vec<char> = text.text.chars().collect();
                Value::string(indices(all.len(), start, stop, step).map(|i| all[i]).collect::<String>(), &self.budget)
            }
            other => Err(format!("{} cannot be sliced", other.kind())),
        }
    }

    fn compare(&self, op: CompareOpKind, left: &Value, right: &Value) -> Result<bool> {
        let order = || left.compare(right, &self.budget);
        Ok(match op {
            CompareOpKind::Eq => left.equals(right, &self.budget)?,
            CompareOpKind::Ne => !left.equals(right, &self.budget)?,
            CompareOpKind::Lt => order()? == Ordering::Less,
            CompareOpKind::Lte => order()? != Ordering::Greater,
            CompareOpKind::Gt => order()? == Ordering::Greater,
            CompareOpKind::Gte => order()? != Ordering::Less,
            CompareOpKind::In => self.contains(right, left)?,
            CompareOpKind::NotIn => !self.contains(right, left)?,
        })
    }

    /// Whether a string, a list or the keys of a map contain a value.
    pub(super) fn contains(&self, of: &Value, part: &Value) -> Result<bool> {
        match (of, part) {
            (Value::Str(of), Value::Str(part)) => {
                self.budget.touch(2 * of.text.len())?;
                Ok(of.text.contains(part.text.as_str()))
            }
            (Value::Str(_), other) => Err(format!("a string cannot contain {}", other.kind())),
            (Value::List(list), _) if list.kind == ListKind::Generator => {
                while let Some(item) = list.next() {
                    if item.equals(part, &self.budget)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            (Value::List(list), _) => {
                for item in &list.items {
                    if item.equals(part, &self.budget)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            (Value::Undefined, _) => Ok(false),
            (Value::Map(_) | Value::Namespace(_), _) => Ok(of.lookup(part, &self.budget)?.is_some()),
            (other, _) => Err(format!("{} cannot contain a value", other.kind())),
        }
    }

    fn binary(&mut self, op: BinOpKind, sides: &'p [Expr; 2]) -> Result<Value> {
        let left = self.expr(&sides[0])?;
        match op {
            BinOpKind::ScAnd if !left.is_true() => return Ok(left),
            BinOpKind::ScOr if left.is_true() => return Ok(left),
            _ => {}
        }
        let right = self.expr(&sides[1])?;
        let compared = |op| self.compare(op, &left, &right).map(Value::Bool);
        match op {
            BinOpKind::ScAnd | BinOpKind::ScOr => Ok(right),
            BinOpKind::Eq => compared(CompareOpKind::Eq),
            BinOpKind::Ne => compared(CompareOpKind::Ne),
            BinOpKind::Lt => compared(CompareOpKind::Lt),
            BinOpKind::Lte => compared(CompareOpKind::Lte),
            BinOpKind::Gt => compared(CompareOpKind::Gt),
            BinOpKind::Gte => compared(CompareOpKind::Gte),
            BinOpKind::In => compared(CompareOpKind::In),
            BinOpKind::Concat => {
                let mut out = Buffer::new(&self.budget)?;
                left.print(&mut out, &self.budget)?;
                right.print(&mut out, &self.budget)?;
                Ok(Value::from_buffer(out))
            }
            BinOpKind::Add => self.add(&left, &right),
            BinOpKind::Mul => self.multiply(&left, &right),
            BinOpKind::Rem if left.as_str().is_some() => {
                let args = match &right {
                    Value::List(list) if list.kind == ListKind::Tuple => list.items.clone(),
                    other => vec![other.clone()],
                };
                filters::format(self, &left, &args)
            }
            _ => arithmetic(op, &left, &right),
        }
    }

    fn add(&self, left: &Value, right: &Value) -> Result<Value> {
        match (left, right) {
            (Value::Str(a), Value::Str(b)) if a.is_markup || b.is_markup => {
                let [a, b] = [left, right].map(|side| filters::escaped(side, &self.budget));
                let [a, b] = [a?, b?];
                let parts = [a.as_str().unwrap_or_default(), b.as_str().unwrap_or_default()];
                let _held = self.budget.hold(parts[0].len() + parts[1].len())?;
                Value::markup(parts.concat(), &self.budget)
            }
            (Value::Str(a), Value::Str(b)) => {
                let mut out = Buffer::new(&self.budget)?;
                out.push(&a.text)?;
                out.push(&b.text)?;
                Ok(Value::from_buffer(out))
            }
            (Value::List(a), Value::List(b)) if a.kind == b.kind && a.has_places() => {
                let count = a.items.len() + b.items.len();
                let _held = self.budget.hold(count * size_of::<Value>())?;
                let items = a.items.iter().chain(&b.items).cloned().collect();
                Ok(Value::List(List::new(items, a.kind, &self.budget)?))
            }
            _ => arithmetic(BinOpKind::Add, left, right),
        }
    }

    fn multiply(&self, left: &Value, right: &Value) -> Result<Value> {
        let (of, times) = match (left, right) {
            (Value::Str(_) | Value::List(_), times) => (left, times),
            (times, Value::Str(_) | Value::List(_)) => (right, times),
            _ => return arithmetic(BinOpKind::Mul, left, right),
        };
        let times = times.as_int().ok_or_else(|| format!("{} times {}", left.kind(), right.kind()))?;
        let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
        match of {
            Value::Str(text) => {
                let _held = self.budget.hold(text.text.len().saturating_mul(times))?;
                Value::string(text.text.repeat(times), &self.budget)
            }
            Value::List(list) if list.has_places() => {
                let count = list.items.len().saturating_mul(times);
                let _held = self.budget.hold(count.saturating_mul(size_of::<Value>()))?;
                let items = list.items.iter().cycle().take(count).cloned().collect();
                Ok(Value::List(List::new(items, list.kind, &self.budget)?))
            }
            _ => Err(format!("{} times {}", left.kind(), right.kind())),
        }
    }
}

/// The places of a slice, as Python counts them.
fn indices(length: usize, start: Option<i128>, stop: Option<i128>, step: i128) -> impl Iterator<Item = usize> {
    let length = length as i128;
    let [low, high] = if step > 0 { [0, length] } else { [-1, length - 1] };
    let place = |n: i128| if n < 0 { (n.saturating_add(length)).max(low) } else { n.min(high) };
    let first = start.map_or(if step > 0 { low } else { high }, place);
    let end = stop.map_or(if step > 0 { high } else { low }, place);
    std::iter::successors(Some(first), move |at| at.checked_add(step))
        .take_while(move |&at| if step > 0 { at < end } else { at > end })
        .map(|at| at as usize)
}

fn arithmetic(op: BinOpKind, left: &Value, right: &Value) -> Result<Value> {
    let sign = match op {
        BinOpKind::Add => "+",
        BinOpKind::Sub => "-",
        BinOpKind::Mul => "*",
        BinOpKind::Div => "/",
        BinOpKind::FloorDiv => "//",
        BinOpKind::Rem => "%",
        _ => "**",
    };
    let types = || format!("{} {sign} {} is not possible", left.kind(), right.kind());
    if let (Some(a), Some(b), false) = (left.as_int(), right.as_int(), matches!(op, BinOpKind::Div)) {
        if b == 0 && matches!(op, BinOpKind::FloorDiv | BinOpKind::Rem) {
            return Err("division by zero".to_owned());
        }
        let floor = |a: i128, b: i128| {
            let quotient = a.checked_div(b)?;
            let is_below = a % b != 0 && (a < 0) != (b < 0);
            Some(quotient - i128::from(is_below))
        };
        let result = match op {
            BinOpKind::Add => a.checked_add(b),
            BinOpKind::Sub => a.checked_sub(b),
            BinOpKind::Mul => a.checked_mul(b),
            BinOpKind::FloorDiv => floor(a, b),
            BinOpKind::Rem => floor(a, b).and_then(|q| a.checked_sub(q.checked_mul(b)?)),
            _ if b < 0 => return Ok(Value::Float((a as f64).powf(b as f64))),
            _ => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
        };
        return result.map(Value::Int).ok_or_else(|| format!("{a} {sign} {b} is too large"));
    }
    let (Some(a), Some(b)) = (left.as_float(), right.as_float()) else { return Err(types()) };
    if b == 0.0 && matches!(op, BinOpKind::Div | BinOpKind::FloorDiv | BinOpKind::Rem) {
        return Err("division by zero".to_owned());
    }
    Ok(Value::Float(match op {
        BinOpKind::Add => a + b,
        BinOpKind::Sub => a - b,
        BinOpKind::Mul => a * b,
        BinOpKind::Div => a / b,
        BinOpKind::FloorDiv => (a / b).floor(),
        BinOpKind::Rem => a - b * (a / b).floor(),
        _ => a.powf(b),
    }))
}
