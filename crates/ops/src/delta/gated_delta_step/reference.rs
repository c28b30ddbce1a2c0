//! One token of the recurrence: the definition is that of the rule over sequences.

use crate::delta::gated_delta_rule::reference as rule;
use crate::op::{Array, Given};

/// `o` and the state.
pub(super) fn forward(t: &Given<Array>, scale: f64) -> Vec<Array> {
    let one_token = |x: &Array| {
        let mut shape = x.shape.clone();
        shape.insert(1, 1);
        Array::new(shape, x.data.clone())
    };
    let mut args: Vec<_> = ["q", "k", "v", "g", "beta"].map(|name| (name, Some(one_token(&t[name])))).into();
    args.push(("initial_state", Some(t["state"].clone())));
    let mut results = rule::forward(&Given { args, dims: t.dims.clone(), options: t.options.clone() }, scale);
    results[0].shape.remove(1);
    results
}
