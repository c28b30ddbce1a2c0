//! The names that a case uses: a misspelt one would silently test something else.

use crate::op::{Case, Op};

/// One line for each name of a case that is not an argument, result, gradient or axis of the operation.
pub fn unknown_names(op: &Op, case: &Case) -> Vec<String> {
    let args: Vec<&str> = op.contract.args.iter().map(|arg| arg.name()).collect();
    let is_axis = |letter: char| op.contract.args.iter().any(|arg| arg.shape().contains(letter));
    let is_output = |name: &str| match name.strip_prefix("d ") {
        Some(arg) => args.contains(&arg),
        None => op.results.contains(&name),
    };
    let of = op.name();
    let mut faults = Vec::new();
    for (letter, _) in case.sizes.iter().filter(|(letter, _)| !is_axis(*letter)) {
        faults.push(format!("size `{letter}` is not an axis of {of}"));
    }
    let named = case.fills.iter().chain(op.fills).map(|(name, _)| *name);
    let named = named.chain(case.stored.iter().map(|(name, _)| *name)).chain(case.without.iter().copied());
    for name in named.filter(|name| !args.contains(name)) {
        faults.push(format!("`{name}` is not an argument of {of}"));
    }
    for name in case.zeros.iter().chain(case.each).filter(|name| !is_output(name)) {
        faults.push(format!("`{name}` is not a result or gradient of {of}"));
    }
    faults
}
