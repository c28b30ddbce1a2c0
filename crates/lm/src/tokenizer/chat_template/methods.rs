//! Python's methods of strings, maps and lists.

use super::budget::{Buffer, Result};
use super::list::{List, ListKind};
use super::value::{Text, Value};
use super::vm::{Args, Vm};
use std::rc::Rc;

/// Calls a method; none where the value has no such method.
pub(super) fn call(vm: &mut Vm<'_>, of: &Value, name: &str, args: &Args) -> Result<Option<Value>> {
    match of {
        Value::Str(text) => of_text(vm, text, name, args),
        Value::Map(map) => {
            let budget = &vm.budget;
            let view = |name, items| Ok::<_, String>(Value::List(List::new(items, ListKind::View(name), budget)?));
            Ok(Some(match name {
                "get" => match of.lookup(args.need(0, "key")?, budget)? {
                    Some(value) => value,
                    None => args.get(1, "default").cloned().unwrap_or(Value::None),
                },
                "keys" => view("dict_keys", map.entries.iter().map(|(key, _)| key.clone()).collect())?,
                "values" => view("dict_values", map.entries.iter().map(|(_, value)| value.clone()).collect())?,
                "items" => {
                    let pair = |(k, v): &(Value, Value)| Value::tuple(vec![k.clone(), v.clone()], budget);
                    view("dict_items", map.entries.iter().map(pair).collect::<Result<_>>()?)?
                }
                "copy" => of.clone(),
                _ => return Ok(None),
            }))
        }
        Value::List(list) if list.has_places() => {
            let (wanted, mut places) = (args.get(0, "value"), Vec::new());
            let wanted = match (name, wanted) {
                ("count" | "index", Some(wanted)) => wanted,
                ("copy", _) => return Ok(Some(of.clone())),
                _ => return Ok(None),
            };
            for (i, item) in list.items.iter().enumerate() {
                if item.equals(wanted, &vm.budget)? {
                    places.push(i as i128);
                }
            }
            match (name, places.first()) {
                ("count", _) => Ok(Some(Value::Int(places.len() as i128))),
                (_, Some(&first)) => Ok(Some(Value::Int(first))),
                (_, None) => Err("index: the value is not in the list".to_owned()),
            }
        }
        _ => Ok(None),
    }
}

fn of_text(vm: &Vm<'_>, of: &Rc<Text>, name: &str, args: &Args) -> Result<Option<Value>> {
    let (text, budget) = (of.text.as_str(), &vm.budget);
    // each method reads the string once or twice; those that make a longer one pay for it themselves
    budget.touch(2 * text.len())?;
    let value = match name {
        "strip" | "lstrip" | "rstrip" => strip(vm, text, name, args),
        "lower" | "casefold" | "upper" | "title" | "capitalize" | "swapcase" => cased(vm, text, name),
        "startswith" | "endswith" => starts_or_ends_with(vm, text, name, args),
        "removeprefix" => Value::string(text.strip_prefix(args.text(0, "prefix")?).unwrap_or(text), budget),
        "removesuffix" => Value::string(text.strip_suffix(args.text(0, "suffix")?).unwrap_or(text), budget),
        "find" | "rfind" | "index" | "rindex" => find(text, name, args),
        "count" => match args.text(0, "sub")? {
            "" => Ok(Value::Int(text.chars().count() as i128 + 1)),
            part => Ok(Value::Int(text.matches(part).count() as i128)),
        },
        "replace" => replace(vm, text, args),
        "split" | "rsplit" => split(vm, text, name, args),
        "splitlines" => {
            let lines = text.split_terminator('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
            Value::list(lines.map(|line| Value::string(line, budget)).collect::<Result<_>>()?, budget)
        }
        "partition" | "rpartition" => partition(vm, text, name, args),
        "join" => join(vm, text, args),
        "center" | "ljust" | "rjust" | "zfill" => pad(vm, text, name, args),
        "format" => format(vm, text, args),
        _ => return Ok(predicate(text, name).map(Value::Bool)),
    };
    value.map(Some)
}

fn strip(vm: &Vm<'_>, text: &str, name: &str, args: &Args) -> Result<Value> {
    let set: Option<&str> = args.get(0, "chars").and_then(Value::as_str);
    vm.budget.touch(text.len().saturating_mul(set.map_or(1, str::len).min(4096)))?;
    let is = |c: char| set.map_or(c.is_whitespace(), |set| set.contains(c));
    let left = if name == "rstrip" { text } else { text.trim_start_matches(is) };
    Value::string(if name == "lstrip" { left } else { left.trim_end_matches(is) }, &vm.budget)
}

/// The text in another case.
fn cased(vm: &Vm<'_>, text: &str, name: &str) -> Result<Value> {
    // letters may grow to three in another case
    let _held = vm.budget.hold(3 * text.len())?;
    let swapped = |c: char| match c.is_lowercase() {
        true => c.to_uppercase().collect::<Vec<_>>(),
        false => c.to_lowercase().collect(),
    };
    let made = match name {
        "upper" => text.to_uppercase(),
        "title" => title(text),
        "capitalize" => capitalize(text),
        "swapcase" => text.chars().flat_map(swapped).collect(),
        _ => text.to_lowercase(),
    };
    Value::string(made, &vm.budget)
}

fn starts_or_ends_with(vm: &Vm<'_>, text: &str, name: &str, args: &Args) -> Result<Value> {
    let test = |part: &Value| match (part.as_str(), name) {
        (None, _) => Err(format!("{name}: {} is not a string", part.kind())),
        (Some(part), "startswith") => Ok(text.starts_with(part)),
        (Some(part), _) => Ok(text.ends_with(part)),
    };
    let mut found = false;
    match args.need(0, "prefix")? {
        Value::List(parts) => {
            for part in &parts.items {
                vm.budget.work(1)?;
                found |= test(part)?;
            }
        }
        part => found = test(part)?,
    }
    Ok(Value::Bool(found))
}

fn find(text: &str, name: &str, args: &Args) -> Result<Value> {
    let part = args.text(0, "sub")?;
    let at = if name.starts_with('r') { text.rfind(part) } else { text.find(part) };
    match at {
        None if name.ends_with("index") => Err("index: the part is not in the string".to_owned()),
        at => Ok(Value::Int(at.map_or(-1, |at| text[..at].chars().count() as i128))),
    }
}

fn partition(vm: &Vm<'_>, text: &str, name: &str, args: &Args) -> Result<Value> {
    let by = args.text(0, "sep")?;
    let found = if name == "partition" { text.split_once(by) } else { text.rsplit_once(by) };
    let parts = match (found, name) {
        (Some((before, after)), _) => [before, by, after],
        (None, "partition") => [text, "", ""],
        (None, _) => ["", "", text],
    };
    let parts = parts.into_iter().map(|part| Value::string(part, &vm.budget));
    Value::tuple(parts.collect::<Result<_>>()?, &vm.budget)
}

fn join(vm: &Vm<'_>, text: &str, args: &Args) -> Result<Value> {
    let mut out = Buffer::new(&vm.budget)?;
    for (i, item) in args.need(0, "iterable")?.items(&vm.budget)?.items.iter().enumerate() {
        out.push(if i > 0 { text } else { "" })?;
        out.push(item.as_str().ok_or_else(|| format!("join: {} is not a string", item.kind()))?)?;
    }
    Ok(Value::from_buffer(out))
}

/// Python's `is…` methods; `None` for any other name.
fn predicate(text: &str, name: &str) -> Option<bool> {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    let in_case = |is: fn(char) -> bool| {
        let letters = || text.chars().filter(|c| c.is_lowercase() || c.is_uppercase());
        letters().next().is_some() && letters().all(is)
    };
    Some(match name {
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isdigit" | "isnumeric" | "isdecimal" => all(char::is_numeric),
        "isspace" => all(char::is_whitespace),
        "isascii" => text.is_ascii(),
        "islower" => in_case(char::is_lowercase),
        "isupper" => in_case(char::is_uppercase),
        _ => return None,
    })
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_inside = false;
    for c in text.chars() {
        if is_inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        is_inside = c.is_alphabetic();
    }
    out
}

fn capitalize(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    first + &letters.as_str().to_lowercase()
}

fn replace(vm: &Vm<'_>, text: &str, args: &Args) -> Result<Value> {
    let (from, to) = (args.text(0, "old")?, args.text(1, "new")?);
    let most = args.int(2, "count")?.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let mut out = Buffer::new(&vm.budget)?;
    let mut at = 0;
    for (place, part) in text.match_indices(from).take(most) {
        out.push(&text[at..place])?;
        out.push(to)?;
        at = place + part.len();
    }
    out.push(&text[at..])?;
    Ok(Value::from_buffer(out))
}

fn split(vm: &Vm<'_>, text: &str, name: &str, args: &Args) -> Result<Value> {
    let most = args.int(1, "maxsplit")?.and_then(|n| usize::try_from(n).ok());
    let is_last_first = name == "rsplit";
    let mut parts = Vec::new();
    let mut add = |part: &str| {
        parts.push(Value::string(part, &vm.budget)?);
        Ok::<(), String>(())
    };
    match (args.get(0, "sep").and_then(Value::as_str), most) {
        (Some(""), _) => return Err("split: the separator is empty".to_owned()),
        (Some(by), None) => text.split(by).try_for_each(&mut add)?,
        (Some(by), Some(most)) if is_last_first => text.rsplitn(most.saturating_add(1), by).try_for_each(&mut add)?,
        (Some(by), Some(most)) => text.splitn(most.saturating_add(1), by).try_for_each(&mut add)?,
        (None, None) => text.split_whitespace().try_for_each(&mut add)?,
        (None, Some(most)) => {
            let mut rest = if is_last_first { text.trim_end() } else { text.trim_start() };
            for _ in 0..most {
                let cut = if is_last_first {
                    rest.rsplit_once(char::is_whitespace)
                } else {
                    rest.split_once(char::is_whitespace)
                };
                let Some((a, b)) = cut else { break };
                let (part, left) = if is_last_first { (b, a.trim_end()) } else { (a, b.trim_start()) };
                vm.budget.work(1)?;
                add(part)?;
                rest = left;
            }
            if !rest.is_empty() {
                add(rest)?;
            }
        }
    }
    if is_last_first && most.is_some() {
        parts.reverse();
    }
    Value::list(parts, &vm.budget)
}

fn pad(vm: &Vm<'_>, text: &str, name: &str, args: &Args) -> Result<Value> {
    let width = args.int(0, "width")?.unwrap_or(80);
    let fill = args.get(1, "fillchar").and_then(Value::as_str).unwrap_or(if name == "zfill" { "0" } else { " " });
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    let _held = vm.budget.hold(missing.saturating_mul(fill.len()))?;
    let left = match name {
        "center" => missing / 2,
        "ljust" => 0,
        _ => missing,
    };
    let sign = text.len() - text.trim_start_matches(['+', '-']).len();
    let sign = if name == "zfill" { sign.min(1) } else { 0 };
    let padded = format!("{}{}{}{}", &text[..sign], fill.repeat(left), &text[sign..], fill.repeat(missing - left));
    Value::string(padded, &vm.budget)
}

/// Python's `str.format` with `{}`, `{0}` and `{name}`.
fn format(vm: &Vm<'_>, text: &str, args: &Args) -> Result<Value> {
    let mut out = Buffer::new(&vm.budget)?;
    let (mut rest, mut next) = (text, 0);
    while let Some(at) = rest.find(['{', '}']) {
        out.push(&rest[..at])?;
        let after = &rest[at + 1..];
        if after.starts_with(&rest[at..=at]) {
            out.push(&rest[at..=at])?;
            rest = &after[1..];
            continue;
        }
        let (key, tail) =
            after.split_once('}').filter(|_| rest[at..].starts_with('{')).ok_or("format: a brace is open")?;
        let value = match key.parse::<usize>() {
            Ok(index) => args.positional.get(index),
            Err(_) if key.is_empty() => args.positional.get(next),
            Err(_) => args.named.iter().find(|(name, _)| name == key).map(|(_, value)| value),
        };
        next += usize::from(key.is_empty());
        value.ok_or_else(|| format!("format: `{{{key}}}` has no value"))?.print(&mut out, &vm.budget)?;
        rest = tail;
    }
    out.push(rest)?;
    Ok(Value::from_buffer(out))
}
