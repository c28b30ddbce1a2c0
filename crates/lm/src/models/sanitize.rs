//! Transforms that make the parameters of a model from stored tensors.
//!
//! A checkpoint in MLX's layout stores every parameter under its name and in its shape. The layout of transformers
//! differs from model to model; the module of each model maps it with [`WeightMap`].

use crate::formats::config::Config;
use alluvium_core::{Result, Shape};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// How a parameter is made from stored tensors.
#[derive(Clone, Debug, PartialEq)]
pub enum Transform {
    /// The stored tensor, unchanged.
    Same(String),
    /// A convolution filter `[C, 1, K]`, reshaped to `[C, K, 1]`.
    Filter(String),
    /// The stored elements plus 1, rounded to their dtype: weights of zero-centered norms.
    PlusOne(String),
    /// Several stored tensors, stacked on a new first axis: experts.
    Stack(Vec<String>),
    /// The first or second half along axis 1 of a tensor of rank 3: the gate or up projections of experts.
    Half(String, Side),
}

/// Which half of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first.
    First,
    /// The second.
    Second,
}

impl Transform {
    /// The names of the stored tensors.
    pub fn stored(&self) -> &[String] {
        match self {
            Transform::Same(name) | Transform::Filter(name) | Transform::PlusOne(name) | Transform::Half(name, _) => {
                std::slice::from_ref(name)
            }
            Transform::Stack(names) => names,
        }
    }

    /// The shape of the parameter; `None` if the transform does not apply to the stored shape.
    pub fn shape(&self, stored: Shape) -> Option<Shape> {
        match (self, stored.dims()) {
            (Transform::Same(_) | Transform::PlusOne(_), _) => Some(stored),
            (Transform::Filter(_), &[channels, 1, taps]) => Some([channels, taps, 1].into()),
            (Transform::Half(..), &[experts, rows, width]) if rows % 2 == 0 => Some([experts, rows / 2, width].into()),
            (Transform::Stack(names), dims) => Shape::new(&[&[names.len()], dims].concat()).ok(),
            _ => None,
        }
    }
}

/// Transforms by the name of the parameter.
pub type WeightMap = BTreeMap<String, Transform>;

/// The shapes of stored tensors by name.
pub type Stored<'a> = BTreeMap<&'a str, Shape>;

/// Adds a transform. Two transforms for one parameter are an error.
pub(crate) fn add(weight_map: &mut WeightMap, name: String, transform: Transform, config: &Config) -> Result<()> {
    match weight_map.entry(name) {
        Entry::Vacant(place) => {
            place.insert(transform);
            Ok(())
        }
        Entry::Occupied(place) => {
            let (a, b) = (place.get().stored(), transform.stored());
            Err(config.error(format!("the weights have `{}` twice, as {a:?} and as {b:?}", place.key())))
        }
    }
}

/// Whether transformers stores the weight of this norm minus 1: all but the output norm of the delta rule.
pub(crate) fn starts_at_zero(name: &str, shape: Shape) -> bool {
    let norms = [
        ".input_layernorm.weight",
        ".post_attention_layernorm.weight",
        "model.norm.weight",
        ".q_norm.weight",
        ".k_norm.weight",
    ];
    shape.rank() == 1 && norms.iter().any(|norm| name.ends_with(norm))
}

/// Whether this is a convolution filter in the layout of transformers, `[C, 1, K]`.
pub(crate) fn is_foreign_filter(name: &str, shape: Shape) -> bool {
    name.contains("conv1d.weight") && shape.rank() == 3 && shape.last() != 1
}

/// Stacks experts that are stored one by one, and splits fused projections: `….mlp.experts.7.up_proj.weight` becomes
/// expert 7 of `….mlp.switch_mlp.up_proj.weight`; the halves of `….mlp.experts.gate_up_proj` become the gate and up
/// projections.
///
/// # Errors
/// When an expert is missing or stored twice.
pub(crate) fn stack_experts(weight_map: WeightMap, config: &Config) -> Result<WeightMap> {
    let mut stacked = WeightMap::new();
    let mut experts: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
    for (name, transform) in weight_map {
        let Some((place, rest)) = name.split_once(".mlp.experts.") else {
            add(&mut stacked, name, transform, config)?;
            continue;
        };
        let known = |rest: &str| format!("{place}.mlp.switch_mlp.{rest}");
        let one = rest.split_once('.').and_then(|(expert, rest)| Some((expert.parse::<usize>().ok()?, rest)));
        match (rest, one, transform) {
            ("gate_up_proj", _, Transform::Same(stored)) => {
                let halves = [("gate_proj.weight", Side::First), ("up_proj.weight", Side::Second)];
                for (half, side) in halves {
                    add(&mut stacked, known(half), Transform::Half(stored.clone(), side), config)?;
                }
            }
            ("down_proj", _, transform) => add(&mut stacked, known("down_proj.weight"), transform, config)?,
            (_, Some((expert, rest)), Transform::Same(stored)) => {
                experts.entry(known(rest)).or_default().insert(expert, stored);
            }
            (_, _, transform) => add(&mut stacked, name, transform, config)?,
        }
    }
    for (known, experts) in experts {
        if let Some(gap) = experts.keys().enumerate().find(|(i, expert)| i != *expert) {
            return Err(config.error(format!("the weights lack expert {} of `{known}`", gap.0)));
        }
        add(&mut stacked, known, Transform::Stack(experts.into_values().collect()), config)?;
    }
    Ok(stacked)
}

/// How a parameter is stored in the layout of transformers, each with the names that it has there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Export {
    /// Unchanged.
    Same(String),
    /// A convolution filter `[C, K, 1]`, reshaped to `[C, 1, K]`.
    Filter(String),
    /// The weight of a zero-centered norm, minus 1.
    MinusOne(String),
    /// Experts, one tensor each.
    Experts(Vec<String>),
}

/// How the parameter called `name` is stored in the layout of transformers, the inverse of the transforms above. The
/// filters of linear attention are `[C, 1, K]`, and the text model of a hybrid model of Qwen is stored without a prefix.
pub(crate) fn export(name: &str, shape: Shape, zero_centered_norms: bool) -> Export {
    let name = name.strip_prefix("language_model.").unwrap_or(name);
    if let (Some((place, rest)), &[experts, ..]) = (name.split_once(".mlp.switch_mlp."), shape.dims()) {
        return Export::Experts((0..experts).map(|expert| format!("{place}.mlp.experts.{expert}.{rest}")).collect());
    }
    match name.to_owned() {
        name if name.contains(".linear_attn.") && name.ends_with("conv1d.weight") => Export::Filter(name),
        name if zero_centered_norms && starts_at_zero(&name, shape) => Export::MinusOne(name),
        name => Export::Same(name),
    }
}

/// The transforms of a hybrid model. `rename` maps the name of a stored tensor to that of the parameter; `None` ignores
/// the tensor. A filter `[C, 1, K]` marks the layout of transformers, whose norms are zero-centered.
///
/// # Errors
/// When two stored tensors would become the same parameter.
pub(crate) fn hybrid(
    stored: &Stored<'_>,
    config: &Config,
    rename: impl Fn(&str) -> Option<String>,
) -> Result<WeightMap> {
    let is_foreign = stored.iter().any(|(name, &shape)| is_foreign_filter(name, shape));
    let mut weight_map = WeightMap::new();
    for (&name, &shape) in stored {
        let Some(known) = rename(name) else { continue };
        let stored = name.to_owned();
        let transform = match () {
            () if is_foreign_filter(name, shape) => Transform::Filter(stored),
            () if is_foreign && starts_at_zero(&known, shape) => Transform::PlusOne(stored),
            () => Transform::Same(stored),
        };
        add(&mut weight_map, known, transform, config)?;
    }
    stack_experts(weight_map, config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_stacked_in_the_order_of_their_numbers_and_a_gap_is_named() {
        let config = Config::new(serde_json::json!({"model_type": "qwen3_next"})).unwrap();
        let names: Vec<String> = (0..12).map(|e| format!("model.layers.1.mlp.experts.{e}.up_proj.weight")).collect();
        let same = |n: &String| (n.clone(), Transform::Same(n.clone()));
        let weight_map = stack_experts(names.iter().map(same).collect(), &config).unwrap();
        assert_eq!(weight_map["model.layers.1.mlp.switch_mlp.up_proj.weight"], Transform::Stack(names.clone()));
        let gap = names.iter().filter(|name| !name.contains(".3.")).map(same).collect();
        let error = stack_experts(gap, &config).unwrap_err().to_string();
        assert!(error.contains("lack expert 3 of `model.layers.1.mlp.switch_mlp.up_proj.weight`"), "{error}");
    }
}
