//! Qwen3.5, dense: three Gated DeltaNet layers, then one of gated attention, each with a SwiGLU.
//!
//! Source: `qwen3_5.py` of mlx-lm; its numbers are this module's test.

use super::{LanguageModel, multiple_of, rotary, size_within};
use crate::formats::config::Config;
use crate::formats::layout::{self, Recipe, Recipes, Stored};
use crate::nn::attention::{AttentionSizes, Gate, HeadNorm};
use crate::nn::decoder::{DEVIATION, DecoderSizes, FeedForwardSizes, Head, LayerSizes, MixerSizes, output_deviation};
use crate::nn::gated_delta_net::DeltaSizes;
use crate::nn::in_proj::Layout;
use crate::nn::linear::Bias;
use crate::nn::mlp::MlpSizes;
use crate::nn::{Builder, Decoder};
use alluvium_core::Result;
use alluvium_ops::{Rope, RopeScaling};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The sizes of a model, by the keys of `text_config`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between the projections of an MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Every this many layers one attends with softmax. With more than there are layers none does; mlx-lm runs
    /// only models that have at least this many.
    #[serde(default = "four")]
    pub full_attention_interval: usize,
    /// Query heads of attention.
    pub num_attention_heads: usize,
    /// Key and value heads of attention.
    pub num_key_value_heads: usize,
    /// Width of an attention head; 0, as where a file does not say it, divides the model's width by its heads.
    #[serde(default)]
    pub head_dim: usize,
    /// Key heads of the delta rule.
    pub linear_num_key_heads: usize,
    /// Value heads of the delta rule.
    pub linear_num_value_heads: usize,
    /// Width of a key of the delta rule.
    pub linear_key_head_dim: usize,
    /// Width of a value of the delta rule.
    pub linear_value_head_dim: usize,
    /// Taps of the convolution.
    #[serde(default = "four")]
    pub linear_conv_kernel_dim: usize,
    /// Words.
    pub vocab_size: usize,
    /// Tokens that a text may have; nothing here depends on it.
    #[serde(default = "longest")]
    pub max_position_embeddings: usize,
    /// Added to mean squares.
    #[serde(default = "eps")]
    pub rms_norm_eps: f32,
    /// Whether the output projection is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Rotary positions.
    #[serde(default)]
    pub rope_parameters: RopeParameters,
}

/// Rotary positions, by the keys of `rope_parameters`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeParameters {
    /// Only `default` is known.
    #[serde(default = "default_rope")]
    pub rope_type: String,
    /// The base of the wavelengths.
    #[serde(default = "theta")]
    pub rope_theta: f32,
    /// The part of a head that turns.
    #[serde(default = "quarter")]
    pub partial_rotary_factor: f32,
}

impl Default for RopeParameters {
    fn default() -> Self {
        RopeParameters { rope_type: default_rope(), rope_theta: theta(), partial_rotary_factor: quarter() }
    }
}

fn four() -> usize {
    4
}
fn longest() -> usize {
    32_768
}
fn eps() -> f32 {
    1e-6
}
fn default_rope() -> String {
    "default".to_owned()
}
fn theta() -> f32 {
    100_000.0
}
fn quarter() -> f32 {
    0.25
}

impl Sizes {
    /// A `config.json` of these sizes, as mlx-lm and transformers read it.
    ///
    /// # Errors
    /// When the sizes are out of range.
    pub fn config(&self, eos_token_id: u32) -> Result<Config> {
        let mut text = json!(self);
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
        Ok(config)
    }

    fn check(&self, config: &Config) -> Result<()> {
        let within = |key, size, most| size_within(config, key, size, most);
        within("hidden_size", self.hidden_size, 1 << 17)?;
        within("intermediate_size", self.intermediate_size, 1 << 20)?;
        within("num_hidden_layers", self.num_hidden_layers, 1 << 10)?;
        within("full_attention_interval", self.full_attention_interval, 1 << 10)?;
        within("num_attention_heads", self.num_attention_heads, 1 << 10)?;
        within("num_key_value_heads", self.num_key_value_heads, self.num_attention_heads)?;
        within("head_dim", self.head(), 1 << 10)?;
        within("linear_num_key_heads", self.linear_num_key_heads, 1 << 10)?;
        within("linear_num_value_heads", self.linear_num_value_heads, 1 << 10)?;
        within("linear_key_head_dim", self.linear_key_head_dim, 256)?;
        within("linear_value_head_dim", self.linear_value_head_dim, 256)?;
        within("linear_conv_kernel_dim", self.linear_conv_kernel_dim, 64)?;
        within("vocab_size", self.vocab_size, 1 << 24)?;
        multiple_of(
            config,
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
        )?;
        multiple_of(
            config,
            ("linear_num_value_heads", self.linear_num_value_heads),
            ("linear_num_key_heads", self.linear_num_key_heads),
        )?;
        self.check_numbers(config)
    }

    fn check_numbers(&self, config: &Config) -> Result<()> {
        let RopeParameters { rope_type, rope_theta, partial_rotary_factor } = &self.rope_parameters;
        if rope_type != "default" {
            return Err(config.wrong(format!("rope_type `{rope_type}` is not known; known is default")));
        }
        rotary::check(config, self.rms_norm_eps, *rope_theta)?;
        rotary::check_part(config, *partial_rotary_factor, self.head())?;
        if self.elements() > 1 << 40 {
            return Err(config.wrong(format!("it describes {} parameters, more than 2^40", self.elements())));
        }
        Ok(())
    }

    /// The width of an attention head.
    fn head(&self) -> usize {
        if self.head_dim == 0 { self.hidden_size / self.num_attention_heads } else { self.head_dim }
    }

    /// The number of parameters in large matrices: sizes are small enough here that nothing overflows.
    fn elements(&self) -> usize {
        let delta = self.delta();
        let mixer = self.hidden_size * (delta.channels() + 2 * delta.values());
        self.vocab_size * self.hidden_size
            + self.num_hidden_layers * (mixer + 3 * self.hidden_size * self.intermediate_size)
    }

    fn delta(&self) -> DeltaSizes {
        DeltaSizes {
            width: self.hidden_size,
            key_heads: self.linear_num_key_heads,
            value_heads: self.linear_num_value_heads,
            key: self.linear_key_head_dim,
            value: self.linear_value_head_dim,
            taps: self.linear_conv_kernel_dim,
            eps: self.rms_norm_eps,
            deviation: DEVIATION,
            output_deviation: output_deviation(self.num_hidden_layers),
            layout: Layout::Separate,
        }
    }

    fn attention(&self) -> AttentionSizes {
        AttentionSizes {
            width: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head: self.head(),
            norm: HeadNorm::Rms(self.rms_norm_eps),
            gate: Gate::Sigmoid,
            bias: Bias::None,
            rope: Rope {
                theta: self.rope_parameters.rope_theta,
                dims: rotary::turning(self.rope_parameters.partial_rotary_factor, self.head()),
                scaling: RopeScaling::None,
            },
            deviation: DEVIATION,
            output_deviation: output_deviation(self.num_hidden_layers),
        }
    }

    fn mlp(&self) -> MlpSizes {
        MlpSizes {
            width: self.hidden_size,
            hidden: self.intermediate_size,
            bias: Bias::None,
            deviation: DEVIATION,
            output_deviation: output_deviation(self.num_hidden_layers),
        }
    }

    fn layer(&self, index: usize) -> LayerSizes {
        let linear = !(index + 1).is_multiple_of(self.full_attention_interval);
        let mixer = if linear { MixerSizes::Delta(self.delta()) } else { MixerSizes::Attention(self.attention()) };
        LayerSizes { mixer, feed_forward: FeedForwardSizes::Dense(self.mlp()) }
    }

    fn decoder(&self) -> DecoderSizes {
        DecoderSizes {
            prefix: "language_model",
            words: self.vocab_size,
            width: self.hidden_size,
            eps: self.rms_norm_eps,
            head: if self.tie_word_embeddings { Head::Tied } else { Head::Own },
            layers: (0..self.num_hidden_layers).map(|i| self.layer(i)).collect(),
        }
    }
}

/// Builds the model; see [`super::build`].
pub(super) fn build(config: &Config, b: Builder) -> Result<Box<dyn LanguageModel>> {
    let sizes: Sizes = config.sizes()?;
    sizes.check(config)?;
    Ok(Box::new(Decoder::build(b, &sizes.decoder(), config)?))
}

/// The parts of a checkpoint that no text model here has.
const ELSEWHERE: &[&str] = &["model.visual", "vision_tower"];

/// Transformers says `model.language_model.X` for `language_model.model.X`, has filters as `[C, 1, K]`, and with those
/// norms that start at zero; and parts that are left out.
pub(super) fn sanitize(stored: &Stored<'_>, config: &Config) -> Result<Recipes> {
    let foreign = stored.iter().any(|(name, &shape)| layout::is_foreign_filter(name, shape));
    let mut recipes = Recipes::new();
    for (&name, &shape) in stored {
        if name.contains("mtp.") || ELSEWHERE.iter().any(|part| name.starts_with(part)) {
            continue;
        }
        let known = match name.strip_prefix("model.language_model.") {
            Some(rest) => format!("language_model.model.{rest}"),
            None if name.starts_with("language_model.") => name.to_owned(),
            None => format!("language_model.{name}"),
        };
        if config.is_tied() && foreign && known == "language_model.lm_head.weight" {
            continue;
        }
        let stored = name.to_owned();
        let recipe = match () {
            () if layout::is_foreign_filter(name, shape) => Recipe::Filter(stored),
            () if foreign && layout::starts_at_zero(&known, shape) => Recipe::PlusOne(stored),
            () => Recipe::Same(stored),
        };
        layout::add(&mut recipes, known, recipe, config)?;
    }
    Ok(recipes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_transformers_become_those_of_mlx() {
        let config = Config::new(json!({"model_type": "qwen3_5"})).unwrap();
        let filter = "model.language_model.layers.0.linear_attn.conv1d.weight";
        let norms = ["model.language_model.norm.weight", "model.language_model.layers.0.linear_attn.norm.weight"];
        let names =
            [filter, norms[0], norms[1], "lm_head.weight", "mtp.fc.weight", "model.visual.patch_embed.proj.weight"];
        let stored: Stored<'_> =
            names.into_iter().map(|n| (n, if n == filter { [8, 1, 4].into() } else { [8].into() })).collect();
        let recipes = sanitize(&stored, &config).unwrap();
        let want = [
            ("language_model.lm_head.weight", Recipe::Same("lm_head.weight".to_owned())),
            ("language_model.model.layers.0.linear_attn.conv1d.weight", Recipe::Filter(filter.to_owned())),
            ("language_model.model.layers.0.linear_attn.norm.weight", Recipe::Same(norms[1].to_owned())),
            ("language_model.model.norm.weight", Recipe::PlusOne(norms[0].to_owned())),
        ];
        assert_eq!(recipes, want.map(|(name, recipe)| (name.to_owned(), recipe)).into());
    }
}
