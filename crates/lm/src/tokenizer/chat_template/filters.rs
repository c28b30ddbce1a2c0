//! Filters of a template: `x | trim`.

use super::budget::{Budget, Buffer, Result};
use super::list::{List, ListKind};
use super::predicates::is;
use super::value::{Value, python_float};
use super::vm::{Args, Vm};
use super::{methods, tojson};
use std::cmp::Ordering;
use std::rc::Rc;

/// Applies the filter called `name`.
pub(super) fn apply(vm: &mut Vm<'_>, name: &str, of: Value, args: &Args) -> Result<Value> {
    let budget = vm.budget.clone();
    match name {
        "abs" => match &of {
            Value::Float(x) => Ok(Value::Float(x.abs())),
            value => value.as_int().and_then(i128::checked_abs).map(Value::Int).ok_or_else(|| unfit(name, value)),
        },
        "attr" => vm.attribute(&of, args.text(0, "name")?),
        "default" | "d" => {
            let is_missing = matches!(of, Value::Undefined) || (args.is_true(1, "boolean") && !of.is_true());
            let empty = || Value::string("", &budget);
            if is_missing { args.get(0, "default_value").map_or_else(empty, |value| Ok(value.clone())) } else { Ok(of) }
        }
        "safe" => {
            let text = of.to_text(&budget)?;
            Value::markup(text.as_str().unwrap_or_default().to_owned(), &budget)
        }
        "string" => of.to_text(&budget),
        "length" | "count" => Ok(Value::Int(length(vm, &of)? as i128)),
        "first" if matches!(of, Value::List(_)) => {
            Ok(if let Value::List(list) = &of { list.next() } else { None }.unwrap_or(Value::Undefined))
        }
        "last" if of.kind() == "generator" => Err(unfit(name, &of)),
        "first" => Ok(of.items(&budget)?.items.first().cloned().unwrap_or(Value::Undefined)),
        "last" => Ok(of.items(&budget)?.items.last().cloned().unwrap_or(Value::Undefined)),
        "list" => Value::list(of.items(&budget)?.items.clone(), &budget),
        "int" => Ok(to_int(&of).unwrap_or(args.int(0, "default")?.map_or(Value::Int(0), Value::Int))),
        "float" => {
            let parsed = of.as_str().and_then(|text| text.trim().parse().ok()).or(of.as_float());
            Ok(parsed.map_or_else(|| args.get(0, "default").cloned().unwrap_or(Value::Float(0.0)), Value::Float))
        }
        "round" => round(&of, args),
        "items" if matches!(of, Value::Undefined) => Value::generator(Vec::new(), &budget),
        "items" => match methods::call(vm, &of, "items", args)? {
            Some(items) => Value::generator(items.items(&budget)?.items.clone(), &budget),
            None => Err(unfit(name, &of)),
        },
        "tojson" => tojson::write(vm, &of, args),
        "join" => join(vm, &of, args),
        // these read nothing where there is nothing, be it none
        "map" | "select" | "reject" | "selectattr" | "rejectattr" if !of.is_true() => {
            Value::generator(Vec::new(), &budget)
        }
        "map" => map(vm, &of, args),
        "select" | "reject" => pick(vm, &of, args, (name == "select", false)),
        "selectattr" | "rejectattr" => pick(vm, &of, args, (name == "selectattr", true)),
        "sort" | "min" | "max" | "unique" | "groupby" | "dictsort" => ordered(vm, name, &of, args),
        "sum" => sum(vm, &of, args),
        "reverse" => match &of {
            Value::Str(text) => {
                let _held = budget.hold(4 * text.text.len())?;
                Value::string(text.text.chars().rev().collect::<String>(), &budget)
            }
            other => Value::generator(other.items(&budget)?.items.iter().rev().cloned().collect(), &budget),
        },
        "batch" | "slice" => batch(vm, name, &of, args),
        "format" => format(vm, &of, &args.positional),
        "indent" => indent(vm, &of, args),
        "e" | "escape" => escaped(&of, &budget),
        "forceescape" => escaped(&Value::string(of.to_text(&budget)?.as_str().unwrap_or_default(), &budget)?, &budget),
        "trim" => text_method(vm, "strip", &of, args),
        "lower" | "upper" | "title" | "capitalize" | "replace" | "center" => text_method(vm, name, &of, args),
        "wordcount" => {
            let text = of.to_text(&budget)?;
            budget.touch(4 * text.as_str().map_or(0, str::len))?;
            Ok(Value::Int(text.as_str().map_or(0, |text| text.split_whitespace().count()) as i128))
        }
        other => Err(format!("filter `{other}` is not known")),
    }
}

/// The text with HTML's characters escaped; that of markup is escaped already.
pub(super) fn escaped(of: &Value, budget: &Rc<Budget>) -> Result<Value> {
    if matches!(of, Value::Str(text) if text.is_markup) {
        return Ok(of.clone());
    }
    let text = of.to_text(budget)?;
    let mut out = Buffer::new(budget)?;
    for piece in text.as_str().unwrap_or_default().split_inclusive(['&', '<', '>', '"', '\'']) {
        let end = piece.len() - usize::from(piece.ends_with(['&', '<', '>', '"', '\'']));
        out.push(&piece[..end])?;
        out.push(match &piece[end..] {
            "&" => "&amp;",
            "<" => "&lt;",
            ">" => "&gt;",
            "\"" => "&#34;",
            "'" => "&#39;",
            _ => "",
        })?;
    }
    let (text, _held) = out.into_parts();
    Value::markup(text, budget)
}

fn unfit(name: &str, value: &Value) -> String {
    format!("{name}: it does not take {}", value.kind())
}

/// Filters that are methods of strings; other values are made strings first.
fn text_method(vm: &mut Vm<'_>, method: &str, of: &Value, args: &Args) -> Result<Value> {
    let text = of.to_text(&vm.budget)?;
    methods::call(vm, &text, method, args)?.ok_or_else(|| unfit(method, of))
}

fn length(vm: &Vm<'_>, of: &Value) -> Result<usize> {
    match of {
        Value::Str(text) => {
            vm.budget.touch(text.text.len())?;
            Ok(text.text.chars().count())
        }
        Value::List(list) if list.kind != ListKind::Generator => Ok(list.items.len()),
        Value::Map(map) => Ok(map.entries.len()),
        Value::Undefined => Ok(0),
        other => Err(unfit("length", other)),
    }
}

fn to_int(of: &Value) -> Option<Value> {
    let truncated = |x: f64| (x.is_finite() && x.abs() < 1e38).then_some(Value::Int(x as i128));
    match of {
        Value::Str(text) => {
            let text = text.text.trim();
            text.parse().map(Value::Int).ok().or_else(|| truncated(text.parse().ok()?))
        }
        Value::Float(x) => truncated(*x),
        other => other.as_int().map(Value::Int),
    }
}

fn round(of: &Value, args: &Args) -> Result<Value> {
    let x = of.as_float().ok_or_else(|| unfit("round", of))?;
    let digits = args.int(0, "precision")?.unwrap_or(0).clamp(-300, 300) as i32;
    let scale = 10f64.powi(digits);
    let rounded = match args.get(1, "method").and_then(Value::as_str) {
        Some("ceil") => (x * scale).ceil(),
        Some("floor") => (x * scale).floor(),
        // as Python: halves go to the even neighbour
        _ => (x * scale).round_ties_even(),
    };
    Ok(Value::Float(rounded / scale))
}

/// The value of a path such as `function.name` or `0`.
fn attribute(vm: &Vm<'_>, of: &Value, path: &Value) -> Result<Value> {
    let Some(path) = path.as_str() else { return lookup(vm, of, path) };
    let mut value = of.clone();
    for part in path.split('.') {
        value = match part.parse::<i128>() {
            Ok(index) => lookup(vm, &value, &Value::Int(index))?,
            Err(_) => vm.attribute(&value, part)?,
        };
    }
    Ok(value)
}

fn lookup(vm: &Vm<'_>, of: &Value, key: &Value) -> Result<Value> {
    let index = key.as_int().and_then(|i| usize::try_from(i).ok());
    match (of, index) {
        (Value::List(list), Some(index)) if list.has_places() => {
            Ok(list.items.get(index).cloned().unwrap_or(Value::Undefined))
        }
        _ => Ok(of.lookup(key, &vm.budget)?.unwrap_or(Value::Undefined)),
    }
}

fn join(vm: &Vm<'_>, of: &Value, args: &Args) -> Result<Value> {
    let between = args.get(0, "d").map(|d| d.to_text(&vm.budget)).transpose()?;
    let between = between.as_ref().and_then(Value::as_str).unwrap_or_default();
    let path = args.get(1, "attribute");
    let mut out = Buffer::new(&vm.budget)?;
    for (i, item) in of.items(&vm.budget)?.items.iter().enumerate() {
        if i > 0 {
            out.push(between)?;
        }
        match path {
            Some(path) => attribute(vm, item, path)?.print(&mut out, &vm.budget)?,
            None => item.print(&mut out, &vm.budget)?,
        }
    }
    Ok(Value::from_buffer(out))
}

fn map(vm: &mut Vm<'_>, of: &Value, args: &Args) -> Result<Value> {
    let budget = vm.budget.clone();
    let mut values = Vec::new();
    let path = args.named.iter().find(|(name, _)| name == "attribute").map(|(_, path)| path);
    let default = args.named.iter().find(|(name, _)| name == "default").map(|(_, value)| value);
    let rest = Args { positional: args.positional.iter().skip(1).cloned().collect(), named: args.named.clone() };
    for item in &of.items(&budget)?.items {
        budget.work(1)?;
        values.push(match path {
            Some(path) => match (attribute(vm, item, path)?, default) {
                (Value::Undefined, Some(default)) => default.clone(),
                (value, _) => value,
            },
            None => {
                let filter = args.text(0, "filter")?;
                vm.deeper(|vm| apply(vm, filter, item.clone(), &rest))?
            }
        });
    }
    Value::generator(values, &budget)
}

/// `select`, `reject` and the two of attributes: `(keep, by_attribute)`.
fn pick(vm: &mut Vm<'_>, of: &Value, args: &Args, (keep, by_attribute): (bool, bool)) -> Result<Value> {
    let budget = vm.budget.clone();
    let first = usize::from(by_attribute);
    let test =
        args.positional.get(first).map(|t| t.as_str().ok_or("the name of a test is not a string")).transpose()?;
    let rest = Args { positional: args.positional.iter().skip(first + 1).cloned().collect(), named: Vec::new() };
    let mut kept = Vec::new();
    for item in &of.items(&budget)?.items {
        budget.work(1)?;
        let value = if by_attribute { attribute(vm, item, args.need(0, "attribute")?)? } else { item.clone() };
        let passes = match test {
            Some(test) => is(vm, test, &value, &rest)?,
            None => value.is_true(),
        };
        if passes == keep {
            kept.push(item.clone());
        }
    }
    Value::generator(kept, &budget)
}

/// The filters that compare items, or a part of them.
fn ordered(vm: &Vm<'_>, name: &str, of: &Value, args: &Args) -> Result<Value> {
    let budget = &vm.budget;
    let at = |index| args.get(index, "attribute");
    let (path, is_reversed) = match name {
        "sort" => (at(2), args.is_true(0, "reverse")),
        "groupby" => (at(0), false),
        "dictsort" => (None, args.is_true(2, "reverse")),
        _ => (at(1), false),
    };
    let items = match (name, of) {
        ("dictsort", Value::Map(map)) => {
            let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()], budget);
            List::new(map.entries.iter().map(pair).collect::<Result<_>>()?, ListKind::List, budget)?
        }
        _ => of.items(budget)?,
    };
    let is_cased = args.is_true(usize::from(name == "sort"), "case_sensitive");
    let _held = budget.hold(items.items.len() * 2 * size_of::<Value>())?;
    let mut keyed = Vec::with_capacity(items.items.len());
    for item in &items.items {
        let key = match (path, name) {
            (Some(path), _) => attribute(vm, item, path)?,
            (None, "dictsort") => {
                lookup(vm, item, &Value::Int(i128::from(args.get(1, "by").and_then(Value::as_str) == Some("value"))))?
            }
            _ => item.clone(),
        };
        let key = match key.as_str() {
            Some(text) if !is_cased => {
                budget.touch(4 * text.len())?;
                Value::string(text.to_lowercase(), budget)?
            }
            _ => key,
        };
        keyed.push((key, item.clone()));
    }
    match name {
        "unique" => unique(vm, keyed),
        "min" | "max" => {
            let wanted = if name == "min" { Ordering::Less } else { Ordering::Greater };
            let mut best: Option<(Value, Value)> = None;
            for (key, item) in keyed {
                let is_better = best.as_ref().map_or(Ok(true), |(b, _)| key.compare(b, budget).map(|o| o == wanted))?;
                if is_better {
                    best = Some((key, item));
                }
            }
            Ok(best.map_or(Value::Undefined, |(_, item)| item))
        }
        _ => {
            sort(vm, &mut keyed, is_reversed)?;
            if name == "groupby" {
                return groups(vm, keyed);
            }
            Value::list(keyed.into_iter().map(|(_, item)| item).collect(), budget)
        }
    }
}

/// Sorts by keys, stably; the first fault ends it.
fn sort(vm: &Vm<'_>, keyed: &mut [(Value, Value)], is_reversed: bool) -> Result<()> {
    let mut fault = None;
    keyed.sort_by(|(a, _), (b, _)| {
        if fault.is_some() {
            return Ordering::Equal;
        }
        let order = a.compare(b, &vm.budget).unwrap_or_else(|why| {
            fault = Some(why);
            Ordering::Equal
        });
        if is_reversed { order.reverse() } else { order }
    });
    fault.map_or(Ok(()), Err)
}

fn unique(vm: &Vm<'_>, keyed: Vec<(Value, Value)>) -> Result<Value> {
    let mut kept: Vec<(Value, Value)> = Vec::new();
    'items: for (key, item) in keyed {
        for (known, _) in &kept {
            if known.equals(&key, &vm.budget)? {
                continue 'items;
            }
        }
        kept.push((key, item));
    }
    Value::generator(kept.into_iter().map(|(_, item)| item).collect(), &vm.budget)
}

fn groups(vm: &Vm<'_>, keyed: Vec<(Value, Value)>) -> Result<Value> {
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in keyed {
        match groups.last_mut() {
            Some((last, items)) if last.equals(&key, &vm.budget)? => items.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let group = |(key, items)| Value::tuple(vec![key, Value::list(items, &vm.budget)?], &vm.budget);
    Value::list(groups.into_iter().map(group).collect::<Result<_>>()?, &vm.budget)
}

fn sum(vm: &Vm<'_>, of: &Value, args: &Args) -> Result<Value> {
    let items: Rc<List> = of.items(&vm.budget)?;
    let mut total = args.get(1, "start").cloned().unwrap_or(Value::Int(0));
    for item in &items.items {
        vm.budget.work(1)?;
        let item = args.get(0, "attribute").map_or_else(|| Ok(item.clone()), |path| attribute(vm, item, path))?;
        total = match (total.as_int(), item.as_int(), total.as_float(), item.as_float()) {
            (Some(a), Some(b), ..) => Value::Int(a.checked_add(b).ok_or("sum: it is too large")?),
            (_, _, Some(a), Some(b)) => Value::Float(a + b),
            _ => return Err(unfit("sum", &item)),
        };
    }
    Ok(total)
}

fn batch(vm: &Vm<'_>, name: &str, of: &Value, args: &Args) -> Result<Value> {
    let budget = &vm.budget;
    let count = args.int(0, if name == "batch" { "linecount" } else { "slices" })?;
    let count = count.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0 && n <= 1 << 20);
    let count = count.ok_or_else(|| format!("{name}: the count is missing or not from 1 to 2^20"))?;
    let fill = args.get(1, "fill_with");
    let items = of.items(budget)?;
    let items = &items.items;
    budget.work(count as u64)?;
    let mut parts: Vec<Vec<Value>> = Vec::new();
    if name == "batch" {
        parts.extend(items.chunks(count).map(<[Value]>::to_vec));
        if let (Some(fill), Some(last)) = (fill, parts.last_mut()) {
            let _held = budget.hold(count * size_of::<Value>())?;
            last.resize(count, fill.clone());
        }
    } else {
        let (each, more) = (items.len() / count, items.len() % count);
        let mut at = 0;
        for i in 0..count {
            let end = at + each + usize::from(i < more);
            let mut part = items[at..end].to_vec();
            part.extend(fill.filter(|_| more > 0 && i >= more).cloned());
            parts.push(part);
            at = end;
        }
    }
    Value::generator(parts.into_iter().map(|part| Value::list(part, budget)).collect::<Result<_>>()?, budget)
}

/// Python's `%` of strings, with `%s`, `%d` and `%f`.
pub(super) fn format(vm: &Vm<'_>, of: &Value, args: &[Value]) -> Result<Value> {
    let text = of.as_str().ok_or_else(|| unfit("format", of))?;
    let mut out = Buffer::new(&vm.budget)?;
    let (mut rest, mut args) = (text, args.iter());
    while let Some((before, after)) = rest.split_once('%') {
        out.push(before)?;
        let mut next = || args.next().ok_or("format: too few arguments");
        let mut letters = after.chars();
        match letters.next() {
            Some('%') => out.push("%")?,
            Some('s') => next()?.print(&mut out, &vm.budget)?,
            Some('d' | 'i') => out.push(&to_int(next()?).and_then(|n| n.as_int()).unwrap_or(0).to_string())?,
            Some('f') => out.push(&format!("{:.6}", next()?.as_float().unwrap_or(0.0)))?,
            Some('r') => out.push(&python_float(next()?.as_float().ok_or("format: %r takes a number")?))?,
            other => return Err(format!("format: `%{}` is not supported", other.map_or(String::new(), String::from))),
        }
        rest = letters.as_str();
    }
    out.push(rest)?;
    Ok(Value::from_buffer(out))
}

fn indent(vm: &Vm<'_>, of: &Value, args: &Args) -> Result<Value> {
    let width = match args.get(0, "width") {
        Some(Value::Str(text)) => text.text.clone(),
        _ => {
            let columns = usize::try_from(args.int(0, "width")?.unwrap_or(4)).ok().filter(|&n| n <= tojson::WIDEST);
            " ".repeat(columns.ok_or_else(|| format!("indent: at most {} columns are possible", tojson::WIDEST))?)
        }
    };
    let (first, blank) = (args.is_true(1, "first"), args.is_true(2, "blank"));
    let text = of.to_text(&vm.budget)?;
    let mut out = Buffer::new(&vm.budget)?;
    for (i, line) in text.as_str().unwrap_or_default().split('\n').enumerate() {
        if i > 0 {
            out.push("\n")?;
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push(&width)?;
        }
        out.push(line)?;
    }
    Ok(Value::from_buffer(out))
}
