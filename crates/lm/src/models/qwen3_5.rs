//! Qwen3.5: three Gated DeltaNet layers, then a gated attention layer, each with an MLP or a mixture of experts.
//!
//! Source: `qwen3_5.py` of mlx-lm; `crates/lm/tests/families.rs` compares with its results.

use super::ModelType;
use super::hybrid::Family;
pub use super::hybrid::{LayerType, MixtureKeys, RopeParameters, Sizes};
use super::rotary::Defaults;
use super::sanitize::{self, Stored, WeightMap};
use crate::formats::config::Config;
use crate::init::VarBuilder;
use crate::nn::Decoder;
use crate::nn::gated_delta_net::Layout;
use alluvium_core::{Error, Result};
use serde_json::{Value, json};

/// Differences from Qwen3-Next.
const FAMILY: Family = Family {
    prefix: "language_model",
    layout: Layout::Separate,
    norm_topk_prob: true,
    rotary: Defaults { theta: Some(100_000.0), part: Some(0.25) },
};

impl Sizes {
    /// The `config.json` of these sizes, which mlx-lm and transformers can read.
    ///
    /// # Errors
    /// When the sizes are out of range.
    pub fn config(&self, eos_token_id: u32) -> Result<Config> {
        // through text: a value in f32 keeps its shortest digits there
        let text = serde_json::to_string(self).and_then(|text| serde_json::from_str::<Value>(&text));
        let mut text = text.map_err(|error| Error::value("config", error.to_string()))?;
        text["model_type"] = "qwen3_5_text".into();
        let config = Config::new(json!({
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "eos_token_id": eos_token_id,
            "model_type": "qwen3_5",
            "text_config": text,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": "float32",
        }))?;
        self.check(&config)?;
        self.rotary(&config, &FAMILY)?;
        Ok(config)
    }
}

/// Builds the model; see [`super::build`].
pub(super) fn build(config: &Config, b: VarBuilder, _: &ModelType) -> Result<Decoder> {
    let sizes = Sizes::read(config)?.alike();
    sizes.check(config)?;
    let decoder = sizes.decoder(&FAMILY, sizes.rotary(config, &FAMILY)?);
    Decoder::build(b, &decoder)
}

/// Prefixes of the vision tower, which is not loaded.
const ELSEWHERE: &[&str] = &["model.visual", "vision_tower"];

/// Renames `model.language_model.X`, and `model.X` of text-only checkpoints, to `language_model.model.X`. Ignores the
/// vision tower and the layers for multi-token prediction.
pub(super) fn sanitize(stored: &Stored<'_>, config: &Config, model_type: &ModelType) -> Result<WeightMap> {
    let is_tied = model_type.is_tied(config)?;
    sanitize::hybrid(stored, config, |name| {
        if name.contains("mtp.") || ELSEWHERE.iter().any(|part| name.starts_with(part)) {
            return None;
        }
        let known = match name.strip_prefix("model.language_model.") {
            Some(rest) => format!("language_model.model.{rest}"),
            None if name.starts_with("language_model.") => name.to_owned(),
            None => format!("language_model.{name}"),
        };
        Some(known).filter(|known| !(is_tied && known.starts_with("language_model.lm_head.")))
    })
}

#[cfg(test)]
mod tests {
    use super::super::sanitize::Transform;
    use super::*;

    #[test]
    fn names_of_transformers_become_those_of_mlx() {
        let config = Config::new(json!({"model_type": "qwen3_5"})).unwrap();
        let model_type = super::super::Registry::default().get(&config).unwrap();
        let filter = "model.language_model.layers.0.linear_attn.conv1d.weight";
        let norms = ["model.language_model.norm.weight", "model.language_model.layers.0.linear_attn.norm.weight"];
        let names =
            [filter, norms[0], norms[1], "lm_head.weight", "mtp.fc.weight", "model.visual.patch_embed.proj.weight"];
        let stored: Stored<'_> =
            names.into_iter().map(|n| (n, if n == filter { [8, 1, 4].into() } else { [8].into() })).collect();
        let weight_map = sanitize(&stored, &config, &model_type).unwrap();
        let want = [
            ("language_model.lm_head.weight", Transform::Same("lm_head.weight".to_owned())),
            ("language_model.model.layers.0.linear_attn.conv1d.weight", Transform::Filter(filter.to_owned())),
            ("language_model.model.layers.0.linear_attn.norm.weight", Transform::Same(norms[1].to_owned())),
            ("language_model.model.norm.weight", Transform::PlusOne(norms[0].to_owned())),
        ];
        assert_eq!(weight_map, want.map(|(name, transform)| (name.to_owned(), transform)).into());
    }
}
