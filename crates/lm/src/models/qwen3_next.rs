//! Qwen3-Next: three Gated DeltaNet layers, then one of gated attention, each with a mixture of experts.
//!
//! Source: `qwen3_next.py` of mlx-lm; its numbers are this module's test.

use super::hybrid::{Family, Sizes};
use super::sanitize::{self, Recipe, Recipes, Stored};
use super::{ModelType, rotary};
use crate::formats::config::Config;
use crate::init::VarBuilder;
use crate::nn::Decoder;
use crate::nn::gated_delta_net::Layout;
use alluvium_core::Result;
use alluvium_ops::Normalize;
use std::collections::BTreeMap;

/// What tells Qwen3-Next apart from Qwen3.5.
const FAMILY: Family = Family { prefix: "", layout: Layout::Merged, normalize: Normalize::No };

/// Builds the model; see [`super::build`].
pub(super) fn build(config: &Config, b: VarBuilder, _: &ModelType) -> Result<Decoder> {
    let sizes: Sizes = config.sizes()?;
    let part = config.text().get("partial_rotary_factor").and_then(serde_json::Value::as_f64).unwrap_or(1.0) as f32;
    sizes.check(config)?;
    rotary::check_part(config, part, sizes.head())?;
    let rope = rotary::rope(config, rotary::turning(part, sizes.head()), None)?;
    rotary::check(config, sizes.rms_norm_eps, rope.theta)?;
    Decoder::build(b, &sizes.decoder(&FAMILY, rope), config)
}

/// Transformers has each expert by itself; with that go filters `[C, 1, K]`, norms that start at zero, and parts that are
/// left out. A file without single experts is one of MLX.
pub(super) fn sanitize(stored: &Stored<'_>, config: &Config, model_type: &ModelType) -> Result<Recipes> {
    let foreign = stored.keys().any(|name| name.ends_with(".mlp.experts.0.up_proj.weight"));
    if !foreign {
        return super::plain(stored, config, model_type);
    }
    let tied = model_type.is_tied(config)?;
    let mut recipes = Recipes::new();
    let mut experts: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
    for (&name, &shape) in stored {
        if name.contains("mtp.") || (tied && name == "lm_head.weight") {
            continue;
        }
        if let Some((known, expert)) = expert(name) {
            experts.entry(known).or_default().insert(expert, name.to_owned());
            continue;
        }
        let stored = name.to_owned();
        let recipe = match () {
            () if sanitize::is_foreign_filter(name, shape) => Recipe::Filter(stored),
            () if sanitize::starts_at_zero(name, shape) => Recipe::PlusOne(stored),
            () => Recipe::Same(stored),
        };
        sanitize::add(&mut recipes, name.to_owned(), recipe, config)?;
    }
    for (known, experts) in experts {
        if let Some(gap) = experts.keys().enumerate().find(|(i, expert)| i != *expert) {
            return Err(config.wrong(format!("the weights lack expert {} of `{known}`", gap.0)));
        }
        sanitize::add(&mut recipes, known, Recipe::Stack(experts.into_values().collect()), config)?;
    }
    Ok(recipes)
}

/// `…mlp.experts.7.up_proj.weight` is expert 7 of `…mlp.switch_mlp.up_proj.weight`.
fn expert(name: &str) -> Option<(String, usize)> {
    let (place, rest) = name.split_once(".mlp.experts.")?;
    let (number, rest) = rest.split_once('.')?;
    Some((format!("{place}.mlp.switch_mlp.{rest}"), number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_stacked_in_the_order_of_their_numbers_and_a_gap_is_named() {
        let config = Config::new(serde_json::json!({"model_type": "qwen3_next"})).unwrap();
        let model_type = super::super::Registry::default().get(&config).unwrap();
        let names: Vec<String> = (0..12).map(|e| format!("model.layers.1.mlp.experts.{e}.up_proj.weight")).collect();
        let stored: Stored<'_> = names.iter().map(|n| (n.as_str(), [4, 8].into())).collect();
        let recipes = sanitize(&stored, &config, &model_type).unwrap();
        assert_eq!(recipes["model.layers.1.mlp.switch_mlp.up_proj.weight"], Recipe::Stack(names.clone()));
        let gap: Stored<'_> = stored.into_iter().filter(|(name, _)| !name.contains(".3.")).collect();
        let error = sanitize(&gap, &config, &model_type).unwrap_err().to_string();
        assert!(error.contains("lack expert 3 of `model.layers.1.mlp.switch_mlp.up_proj.weight`"), "{error}");
    }
}
