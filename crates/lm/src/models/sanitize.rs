//! How tensors that a model asks for come out of the ones that a file has.
//!
//! Files in the layout of MLX have every tensor under the name and in the shape that the model asks for. Files in the
//! layout of transformers differ in ways that belong to each model: its module lists them as [`Recipes`].

use crate::formats::config::Config;
use alluvium_core::{Result, Shape};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// How one tensor comes about.
#[derive(Clone, Debug, PartialEq)]
pub enum Recipe {
    /// It is this stored one.
    Same(String),
    /// A filter `[C, 1, K]` as `[C, K, 1]`.
    Filter(String),
    /// One more than the stored numbers, rounded to their dtype: norms that start at zero.
    PlusOne(String),
    /// The stored ones on a new first axis: experts.
    Stack(Vec<String>),
    /// One of two halves along the second of three axes: the gate and the up projections of experts.
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

impl Recipe {
    /// The stored tensors that it needs.
    pub fn stored(&self) -> &[String] {
        match self {
            Recipe::Same(name) | Recipe::Filter(name) | Recipe::PlusOne(name) | Recipe::Half(name, _) => {
                std::slice::from_ref(name)
            }
            Recipe::Stack(names) => names,
        }
    }

    /// The shape that a stored shape becomes; `None` where the recipe does not fit it.
    pub fn shape(&self, stored: Shape) -> Option<Shape> {
        match (self, stored.dims()) {
            (Recipe::Same(_) | Recipe::PlusOne(_), _) => Some(stored),
            (Recipe::Filter(_), &[channels, 1, taps]) => Some([channels, taps, 1].into()),
            (Recipe::Half(..), &[experts, rows, width]) if rows % 2 == 0 => Some([experts, rows / 2, width].into()),
            (Recipe::Stack(names), dims) => Shape::new(&[&[names.len()], dims].concat()).ok(),
            _ => None,
        }
    }
}

/// Recipes by the name that the model asks for.
pub type Recipes = BTreeMap<String, Recipe>;

/// The shapes of stored tensors by their names.
pub type Stored<'a> = BTreeMap<&'a str, Shape>;

/// Adds a recipe; two for one name are an error.
pub(crate) fn add(recipes: &mut Recipes, name: String, recipe: Recipe, config: &Config) -> Result<()> {
    match recipes.entry(name) {
        Entry::Vacant(place) => {
            place.insert(recipe);
            Ok(())
        }
        Entry::Occupied(place) => {
            let (a, b) = (place.get().stored(), recipe.stored());
            Err(config.wrong(format!("the weights have `{}` twice, as {a:?} and as {b:?}", place.key())))
        }
    }
}

/// Whether a norm of this name starts at zero in the layout of transformers: all but that of the delta rule's result.
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

/// Whether this is a filter `[C, 1, K]`, which MLX has as `[C, K, 1]`.
pub(crate) fn is_foreign_filter(name: &str, shape: Shape) -> bool {
    name.contains("conv1d.weight") && shape.rank() == 3 && shape.last() != 1
}

/// Puts experts that a file has one by one, or with two projections in one tensor, where the model asks for them:
/// `….mlp.experts.7.up_proj.weight` is expert 7 of `….mlp.switch_mlp.up_proj.weight`, and `….mlp.experts.gate_up_proj` has
/// the gate projections and then the up projections of all experts.
///
/// # Errors
/// When an expert is missing, or a tensor is there twice.
pub(crate) fn stack_experts(recipes: Recipes, config: &Config) -> Result<Recipes> {
    let mut stacked = Recipes::new();
    let mut experts: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
    for (name, recipe) in recipes {
        let Some((place, rest)) = name.split_once(".mlp.experts.") else {
            add(&mut stacked, name, recipe, config)?;
            continue;
        };
        let known = |rest: &str| format!("{place}.mlp.switch_mlp.{rest}");
        let one = rest.split_once('.').and_then(|(expert, rest)| Some((expert.parse::<usize>().ok()?, rest)));
        match (rest, one, recipe) {
            ("gate_up_proj", _, Recipe::Same(stored)) => {
                let halves = [("gate_proj.weight", Side::First), ("up_proj.weight", Side::Second)];
                for (half, side) in halves {
                    add(&mut stacked, known(half), Recipe::Half(stored.clone(), side), config)?;
                }
            }
            ("down_proj", _, recipe) => add(&mut stacked, known("down_proj.weight"), recipe, config)?,
            (_, Some((expert, rest)), Recipe::Same(stored)) => {
                experts.entry(known(rest)).or_default().insert(expert, stored);
            }
            (_, _, recipe) => add(&mut stacked, name, recipe, config)?,
        }
    }
    for (known, experts) in experts {
        if let Some(gap) = experts.keys().enumerate().find(|(i, expert)| i != *expert) {
            return Err(config.wrong(format!("the weights lack expert {} of `{known}`", gap.0)));
        }
        add(&mut stacked, known, Recipe::Stack(experts.into_values().collect()), config)?;
    }
    Ok(stacked)
}

/// The recipes of a hybrid model, whose tensors are called as `rename` says. Transformers has filters as `[C, 1, K]`, and
/// with those norms that start at zero.
///
/// # Errors
/// When a tensor is there twice.
pub(crate) fn hybrid(stored: &Stored<'_>, config: &Config, rename: impl Fn(&str) -> Option<String>) -> Result<Recipes> {
    let is_foreign = stored.iter().any(|(name, &shape)| is_foreign_filter(name, shape));
    let mut recipes = Recipes::new();
    for (&name, &shape) in stored {
        let Some(known) = rename(name) else { continue };
        let stored = name.to_owned();
        let recipe = match () {
            () if is_foreign_filter(name, shape) => Recipe::Filter(stored),
            () if is_foreign && starts_at_zero(&known, shape) => Recipe::PlusOne(stored),
            () => Recipe::Same(stored),
        };
        add(&mut recipes, known, recipe, config)?;
    }
    stack_experts(recipes, config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_stacked_in_the_order_of_their_numbers_and_a_gap_is_named() {
        let config = Config::new(serde_json::json!({"model_type": "qwen3_next"})).unwrap();
        let names: Vec<String> = (0..12).map(|e| format!("model.layers.1.mlp.experts.{e}.up_proj.weight")).collect();
        let same = |n: &String| (n.clone(), Recipe::Same(n.clone()));
        let recipes = stack_experts(names.iter().map(same).collect(), &config).unwrap();
        assert_eq!(recipes["model.layers.1.mlp.switch_mlp.up_proj.weight"], Recipe::Stack(names.clone()));
        let gap = names.iter().filter(|name| !name.contains(".3.")).map(same).collect();
        let error = stack_experts(gap, &config).unwrap_err().to_string();
        assert!(error.contains("lack expert 3 of `model.layers.1.mlp.switch_mlp.up_proj.weight`"), "{error}");
    }
}
