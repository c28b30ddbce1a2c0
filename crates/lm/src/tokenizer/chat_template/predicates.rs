//! Tests of a template: `x is defined`.

use super::budget::Result;
use super::names::{FILTERS, TESTS};
use super::value::Value;
use super::vm::{Args, Vm};
use std::cmp::Ordering;

/// Whether a value passes the test called `name`.
pub(super) fn is(vm: &Vm<'_>, name: &str, value: &Value, args: &Args) -> Result<bool> {
    let integer = || value.as_int().ok_or_else(|| format!("{name}: {} is not an integer", value.kind()));
    let order = || value.compare(args.need(0, "other")?, &vm.budget);
    let letters = |is: fn(char) -> bool| {
        let Some(text) = value.as_str() else { return Ok::<_, String>(false) };
        vm.budget.touch(text.len())?;
        Ok(text.chars().any(char::is_alphabetic) && text.chars().filter(|c| c.is_alphabetic()).all(is))
    };
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined),
        "undefined" => matches!(value, Value::Undefined),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_float().is_some(),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Map(_)),
        "sequence" | "iterable" => match value {
            Value::List(list) => name == "iterable" || list.has_places(),
            _ => matches!(value, Value::Str(_) | Value::Map(_) | Value::Undefined),
        },
        "callable" => matches!(value, Value::Macro(_) | Value::Function(_) | Value::Loop(_)),
        "odd" => integer()? % 2 != 0,
        "even" => integer()? % 2 == 0,
        "divisibleby" => {
            let by = args.int(0, "num")?.filter(|&by| by != 0).ok_or("divisibleby: a number is missing")?;
            integer()?.checked_rem(by) == Some(0)
        }
        "eq" | "equalto" | "==" | "sameas" => value.equals(args.need(0, "other")?, &vm.budget)?,
        "ne" | "!=" => !value.equals(args.need(0, "other")?, &vm.budget)?,
        "lt" | "lessthan" | "<" => order()? == Ordering::Less,
        "le" | "<=" => order()? != Ordering::Greater,
        "gt" | "greaterthan" | ">" => order()? == Ordering::Greater,
        "ge" | ">=" => order()? != Ordering::Less,
        "in" => vm.contains(args.need(0, "seq")?, value)?,
        "lower" => letters(char::is_lowercase)?,
        "upper" => letters(char::is_uppercase)?,
        "startingwith" => value.as_str().is_some_and(|text| args.text(0, "other").is_ok_and(|s| text.starts_with(s))),
        "endingwith" => value.as_str().is_some_and(|text| args.text(0, "other").is_ok_and(|s| text.ends_with(s))),
        "escaped" => matches!(value, Value::Str(text) if text.is_markup),
        "filter" => value.as_str().is_some_and(|name| FILTERS.contains(&name)),
        "test" => value.as_str().is_some_and(|name| TESTS.contains(&name)),
        other => return Err(format!("test `{other}` is not known")),
    })
}
