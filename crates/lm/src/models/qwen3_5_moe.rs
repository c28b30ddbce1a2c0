//! Qwen3.5 with a mixture of experts in each layer.
//!
//! Source: `qwen3_5_moe.py` of mlx-lm; its numbers are this module's test.

pub(super) use super::qwen3_5::build;
use super::sanitize::{self, Recipe, Recipes, Side, Stored};
use super::{ModelType, qwen3_5};
use crate::formats::config::Config;
use alluvium_core::Result;

/// As the dense model; and transformers has the experts' gate and up projections in one tensor.
pub(super) fn sanitize(stored: &Stored<'_>, config: &Config, model_type: &ModelType) -> Result<Recipes> {
    let mut recipes = Recipes::new();
    for (name, recipe) in qwen3_5::sanitize(stored, config, model_type)? {
        let parts = match (
            &recipe,
            name.strip_suffix(".mlp.experts.gate_up_proj"),
            name.strip_suffix(".mlp.experts.down_proj"),
        ) {
            (Recipe::Same(stored), Some(place), _) => vec![
                (place.to_owned(), "gate_proj", Recipe::Half(stored.clone(), Side::First)),
                (place.to_owned(), "up_proj", Recipe::Half(stored.clone(), Side::Second)),
            ],
            (_, _, Some(place)) => vec![(place.to_owned(), "down_proj", recipe)],
            _ => {
                sanitize::add(&mut recipes, name, recipe, config)?;
                continue;
            }
        };
        for (place, projection, recipe) in parts {
            sanitize::add(&mut recipes, format!("{place}.mlp.switch_mlp.{projection}.weight"), recipe, config)?;
        }
    }
    Ok(recipes)
}
