//! What the values of flags look like: numbers below zero reach the flag they follow, and what is no number is refused in
//! words that say what the flag takes.

use clap::builder::ValueParser;
use clap::{Arg, Command};
use std::any::TypeId;
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::str::FromStr;

/// The program's command line with that done to every flag of every command.
pub(crate) fn worded(command: Command) -> Command {
    command.mut_subcommands(|command| command.mut_args(number))
}

fn number(arg: Arg) -> Arg {
    if !arg.get_action().takes_values() {
        return arg;
    }
    let arg = arg.allow_negative_numbers(true);
    let takes = |kind: TypeId| arg.get_value_parser().type_id() == kind;
    let parser = if takes(TypeId::of::<usize>()) {
        ValueParser::new(|text: &str| whole(text, usize::MAX))
    } else if takes(TypeId::of::<u64>()) {
        ValueParser::new(|text: &str| whole(text, u64::MAX))
    } else if takes(TypeId::of::<NonZeroUsize>()) {
        ValueParser::new(|text: &str| text.parse::<NonZeroUsize>().map_err(|_| "expected a whole number, 1 or more"))
    } else if takes(TypeId::of::<f32>()) {
        ValueParser::new(|text: &str| text.parse::<f32>().map_err(|_| "expected a number"))
    } else if takes(TypeId::of::<f64>()) {
        ValueParser::new(|text: &str| text.parse::<f64>().map_err(|_| "expected a number"))
    } else if takes(TypeId::of::<i64>()) {
        ValueParser::new(|text: &str| text.parse::<i64>().map_err(|_| "expected a whole number"))
    } else {
        return arg;
    };
    arg.value_parser(parser)
}

/// A number of things.
fn whole<T: FromStr + Display>(text: &str, most: T) -> Result<T, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().map_err(|_| match digits {
        true => format!("expected at most {most}"),
        false => "expected a whole number, 0 or more".to_owned(),
    })
}
