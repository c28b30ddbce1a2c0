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
