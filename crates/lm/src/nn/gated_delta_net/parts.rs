//! The filters, the norm and the output projection of a Gated DeltaNet layer, under the names of checkpoints.

use super::config::{GatedDeltaNetConfig, Layout};
use crate::init::{Init, VarBuilder};
use crate::nn::{Linear, RmsNorm};
use crate::parameters::Parameter;
use crate::params;
use alluvium_core::{Result, Tensor};
use alluvium_ops::concat;

/// A depthwise filter in the layout of MLX: `weight [C, K, 1]`.
#[derive(Clone, Debug)]
pub(super) struct Conv1d {
    weight: Parameter,
}

params!(Conv1d { weight });

/// The filters of all channels.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a model has a few hundred at most
pub(super) enum Filters {
    Joined(Conv1d),
    Split(SplitFilters),
}

#[derive(Clone, Debug)]
pub(super) struct SplitFilters {
    q_conv1d: Conv1d,
    k_conv1d: Conv1d,
    v_conv1d: Conv1d,
}

params!(SplitFilters { q_conv1d, k_conv1d, v_conv1d });

params!(enum Filters { Joined: "conv1d", Split: "" });

impl Filters {
    pub(super) fn build(b: &mut VarBuilder, config: &GatedDeltaNetConfig) -> Result<Self> {
        let init = Init::Uniform((config.kernel_size as f64).sqrt().recip());
        let mut filter = |name, channels| {
            let weight = b.pp(name).parameter("weight", [channels, config.kernel_size, 1], init)?;
            Ok::<_, alluvium_core::Error>(Conv1d { weight })
        };
        Ok(match config.layout {
            Layout::Separate | Layout::Merged => Filters::Joined(filter("conv1d", config.channels())?),
            Layout::Split => Filters::Split(SplitFilters {
                q_conv1d: filter("q_conv1d", config.key_channels())?,
                k_conv1d: filter("k_conv1d", config.key_channels())?,
                v_conv1d: filter("v_conv1d", config.value_channels())?,
            }),
        })
    }

    /// The filters of all channels, `[C, K]`.
    pub(super) fn joined(&self, config: &GatedDeltaNetConfig) -> Result<Tensor> {
        let shape = [config.channels(), config.kernel_size];
        match self {
            Filters::Joined(Conv1d { weight }) => weight.reshape(shape),
            Filters::Split(SplitFilters { q_conv1d, k_conv1d, v_conv1d }) => {
                concat(&[&q_conv1d.weight, &k_conv1d.weight, &v_conv1d.weight], 0)?.reshape(shape)
            }
        }
    }
}

/// The gated norm and the projection of the result.
#[derive(Clone, Debug)]
pub(super) enum Output {
    Qwen(QwenOutput),
    Olmo(OlmoOutput),
}

#[derive(Clone, Debug)]
pub(super) struct QwenOutput {
    norm: RmsNorm,
    out_proj: Linear,
}

#[derive(Clone, Debug)]
pub(super) struct OlmoOutput {
    o_norm: RmsNorm,
    o_proj: Linear,
}

params!(QwenOutput { norm, out_proj });

params!(OlmoOutput { o_norm, o_proj });

params!(
    enum Output {
        Qwen,
        Olmo,
    }
);

impl Output {
    pub(super) fn build(b: &mut VarBuilder, config: &GatedDeltaNetConfig) -> Result<Self> {
        let GatedDeltaNetConfig { hidden_size, value_dim, eps, residual_init_std, .. } = *config;
        let mut parts = |norm, linear| {
            let norm = RmsNorm::build(b.pp(norm), value_dim, eps)?;
            let linear = Linear::build(b.pp(linear), [hidden_size, config.value_channels()], residual_init_std)?;
            Ok::<_, alluvium_core::Error>((norm, linear))
        };
        Ok(match config.layout {
            Layout::Separate | Layout::Merged => {
                let (norm, out_proj) = parts("norm", "out_proj")?;
                Output::Qwen(QwenOutput { norm, out_proj })
            }
            Layout::Split => {
                let (o_norm, o_proj) = parts("o_norm", "o_proj")?;
                Output::Olmo(OlmoOutput { o_norm, o_proj })
            }
        })
    }

    /// The norm and the projection.
    pub(super) fn parts(&self) -> (&RmsNorm, &Linear) {
        match self {
            Output::Qwen(part) => (&part.norm, &part.out_proj),
            Output::Olmo(part) => (&part.o_norm, &part.o_proj),
        }
    }

    pub(super) fn forward(&self, o_btgv: &Tensor, z_btgv: &Tensor) -> Result<Tensor> {
        let (norm, linear) = self.parts();
        let &[b, t, heads, value_dim] = o_btgv.shape().dims() else { return linear.forward(o_btgv) };
        linear.forward(&norm.gated(o_btgv, z_btgv)?.reshape([b, t, heads * value_dim])?)
    }
}
