//! The documentation that is made from the list.

use crate::OPS;
use crate::op::{Gradient, Op};
use alluvium_core::Device;
use alluvium_core::contract::Arg;

/// The page docs/ops.md: every operation with its arguments, results and gradient.
pub fn page() -> String {
    let mut page = String::from(
        "# Operations\n\n\
         Made by `alluvium ops --markdown` from the list in `crates/ops/src/lib.rs`; a test fails when it is stale.\n\n\
         Letters are axes: `B T H K`. `R..` is any number of leading axes. An argument in brackets may be left out.\n\
         The gradient of a weight in half precision is f32 and not rounded on the way where a tape watches the weight.\n\n\
         Every operation runs on every kind of device, with its gradient where there is one:\n\n",
    );
    for (name, what) in Device::KINDS {
        page += &format!("- `{name}`: {what}\n");
    }
    page += "\n| operation | what it does | takes | gives | gradient |\n|---|---|---|---|---|\n";
    for op in OPS {
        page += &format!("| {} |\n", row(op).join(" | "));
    }
    page
}

/// One operation's row: name, summary, arguments, results, gradient.
pub fn row(op: &Op) -> [String; 5] {
    let args: Vec<String> = op.contract.args.iter().map(argument).collect();
    let gradient = match op.gradient {
        Gradient::Of(_) => "yes".to_owned(),
        Gradient::None(why) => format!("none: {why}"),
    };
    [format!("`{}`", op.name()), op.summary.to_owned(), args.join(", "), op.results.join(", "), gradient]
}

fn argument(arg: &Arg) -> String {
    let weight = if arg.is_weight() { " (weight)" } else { "" };
    let text = format!("`{}` {}{weight}", arg.name(), arg.shape());
    if arg.is_optional() { format!("[{text}]") } else { text }
}
