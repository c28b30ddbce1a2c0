//! Gated DeltaNet: the linear-attention layer of hybrid models.

mod config;
mod in_proj;
mod parts;

pub use config::{GatedDeltaNetConfig, Layout};

use super::ablation::{Ablation, gated_linear_attention, identity};
use crate::cache::{CacheShape, DeltaCache};
use crate::init::{Init, VarBuilder};
use crate::parameters::Parameter;
use crate::params;
use alluvium_core::{Error, Result, Tensor};
use alluvium_ops::{
    Activation, CausalConv1dArgs, ChunkStates, ConvOutput, GatedDeltaArgs, GatedDeltaNetStep, GatedDeltaNetStepArgs,
    GatedDeltaOutput, Gates, causal_conv1d, gated_delta_net_step, gated_delta_rule, gdn_gate, l2_norm, scale, split_in,
};
use in_proj::{InProj, Inputs};
use parts::{Filters, Output};

/// The epsilon of the L2 norms of queries and keys, added to the sum of squares.
const EPS: f32 = 1e-6;

/// The token mixer of a linear layer: project, convolve, gated delta rule, gated norm, project.
///
/// Shape suffixes: `b` batch, `t` tokens, `d` hidden size, `c` convolved channels, `h` key heads, `g` value heads,
/// `k` key size, `v` value size. Channels are all queries, then all keys, then all values.
///
/// Source: Yang et al. 2024, arXiv:2412.06464; `GatedDeltaNet` of qwen3_5 and olmo_hybrid in mlx-lm.
#[derive(Clone, Debug)]
pub struct GatedDeltaNet {
    in_proj: InProj,
    filters: Filters,
    a_log: Parameter,
    dt_bias: Parameter,
    output: Output,
    config: GatedDeltaNetConfig,
    ablation: Ablation,
}

params!(GatedDeltaNet { in_proj: "", filters: "", a_log: "A_log", dt_bias, output: "" });

impl GatedDeltaNet {
    /// Builds the layer from its place in a source.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`](crate::init::WeightSource::tensor).
    pub fn build(mut b: VarBuilder, config: &GatedDeltaNetConfig) -> Result<Self> {
        let value_heads = config.value_heads;
        Ok(GatedDeltaNet {
            in_proj: InProj::build(&mut b, config)?,
            filters: Filters::build(&mut b, config)?,
            a_log: b.parameter("A_log", [value_heads], Init::LogOfUniform(1.0, 16.0))?,
            dt_bias: b.parameter("dt_bias", [value_heads], Init::InverseSoftplusOfLogUniform(1e-3, 0.1))?,
            output: Output::build(&mut b, config)?,
            config: *config,
            ablation: Ablation::None,
        })
    }

    /// The forward pass over whole sequences, for training: `[B, T, D]` to `[B, T, D]`.
    ///
    /// # Errors
    /// As the operations.
    pub fn forward(&self, x_btd: &Tensor, cu_seqlens: Option<&Tensor>) -> Result<Tensor> {
        let Projected { heads, z_btgv, .. } = self.project(x_btd, None, cu_seqlens)?;
        let rule = GatedDeltaArgs { cu_seqlens, ..self.rule(&heads) };
        let o = match self.ablation {
            Ablation::None | Ablation::Convolution => gated_delta_rule(rule)?.o,
            Ablation::DeltaTerm => gated_linear_attention(&rule)?,
        };
        self.output.forward(&o, &z_btgv)
    }

    /// Removes a part of the layer for an experiment, or restores it.
    pub fn ablate(&mut self, ablation: Ablation) {
        self.ablation = ablation;
    }

    /// The forward pass over new tokens, which are appended to the cache.
    ///
    /// # Errors
    /// As the operations, and where the delta term is ablated, which has no step-by-step form. The cache cannot be used
    /// after an error.
    pub fn step(&self, x_btd: &Tensor, cache: &mut DeltaCache) -> Result<Tensor> {
        if self.ablation == Ablation::DeltaTerm {
            return Err(Error::value("step", "a layer without its delta term has no step by step form here"));
        }
        if x_btd.shape()[1] == 1
            && self.ablation == Ablation::None
            && cache.conv_state.is_some()
            && cache.recurrent_state.is_some()
        {
            return self.one(x_btd, cache);
        }
        let Projected { heads, z_btgv, conv_state } = self.project(x_btd, cache.conv_state.as_ref(), None)?;
        let state = cache.recurrent_state.take();
        let rule = GatedDeltaArgs { initial_state: state.as_ref(), ..self.rule(&heads) };
        let GatedDeltaOutput { o, final_state } = gated_delta_rule(rule)?;
        (cache.conv_state, cache.recurrent_state) = (conv_state, Some(final_state));
        self.output.forward(&o, &z_btgv)
    }

    /// The shape of the layer's cache for one sequence.
    pub fn cache_shape(&self) -> CacheShape {
        let GatedDeltaNetConfig { value_heads, key_dim, value_dim, kernel_size, .. } = self.config;
        CacheShape::Delta {
            conv_state: (kernel_size > 1).then(|| [1, kernel_size - 1, self.config.channels()].into()),
            recurrent_state: [1, value_heads, value_dim, key_dim].into(),
        }
    }

    fn project(&self, x_btd: &Tensor, conv_state: Option<&Tensor>, cu_seqlens: Option<&Tensor>) -> Result<Projected> {
        let GatedDeltaNetConfig { key_heads: h, value_heads: g, key_dim, value_dim, .. } = self.config;
        let [b, t] = [x_btd.shape()[0], x_btd.shape()[1]];
        let Inputs { qkv_btc, z_btv, b_btg, a_btg } = self.in_proj.forward(x_btd, &self.config)?;
        let filter = self.filters.joined(&self.config)?;
        let filter = if self.ablation == Ablation::Convolution { identity(&filter)? } else { filter };
        let ConvOutput { y: qkv_btc, final_state } = causal_conv1d(CausalConv1dArgs {
            x: &qkv_btc,
            w: &filter,
            initial_state: conv_state,
            cu_seqlens,
            activation: Activation::Silu,
        })?;
        let [q, k, v] = split_in(&qkv_btc, [h * key_dim, h * key_dim, g * value_dim], 2)?;
        let Gates { g: decay_btg, beta: beta_btg } = gdn_gate(&a_btg, &b_btg, &self.a_log, &self.dt_bias)?;
        let heads = Heads {
            q_bthk: l2_norm(&q.reshape([b, t, h, key_dim])?, EPS)?,
            k_bthk: l2_norm(&k.reshape([b, t, h, key_dim])?, EPS)?,
            v_btgv: v.reshape([b, t, g, value_dim])?,
            decay_btg,
            beta_btg: if self.config.allow_neg_eigval { scale(&beta_btg, 2.0)? } else { beta_btg },
        };
        Ok(Projected { heads, z_btgv: z_btv.reshape([b, t, g, value_dim])?, conv_state: final_state })
    }

    fn rule<'a>(&self, heads: &'a Heads) -> GatedDeltaArgs<'a> {
        GatedDeltaArgs {
            q: &heads.q_bthk,
            k: &heads.k_bthk,
            v: &heads.v_btgv,
            g: &heads.decay_btg,
            beta: &heads.beta_btg,
            initial_state: None,
            cu_seqlens: None,
            scale: self.scale(),
            states: ChunkStates::Keep,
        }
    }

    /// The step of one token of each sequence.
    fn one(&self, x_b1d: &Tensor, cache: &mut DeltaCache) -> Result<Tensor> {
        let [b, d] = [x_b1d.shape()[0], x_b1d.shape().last()];
        let missing = || Error::value("step", "the cache of a linear layer is empty");
        let conv_state = cache.conv_state.take().ok_or_else(missing)?;
        let state = cache.recurrent_state.take().ok_or_else(missing)?;
        let (norm, out_proj) = self.output.parts();
        let GatedDeltaNetStep { y, conv_state, state } = gated_delta_net_step(GatedDeltaNetStepArgs {
            x: &self.in_proj.row(&x_b1d.reshape([b, d])?)?,
            conv_state: &conv_state,
            filter: &self.filters.joined(&self.config)?,
            a_log: &self.a_log,
            dt_bias: &self.dt_bias,
            norm: norm.weight(),
            state,
            layout: self.in_proj.head_layout(),
            l2_eps: EPS,
            norm_eps: norm.eps(),
            beta_scale: if self.config.allow_neg_eigval { 2.0 } else { 1.0 },
            scale: self.scale(),
        })?;
        (cache.conv_state, cache.recurrent_state) = (Some(conv_state), Some(state));
        out_proj.forward(&y.reshape([b, 1, self.config.value_channels()])?)
    }

    fn scale(&self) -> f32 {
        (self.config.key_dim as f32).sqrt().recip()
    }
}

struct Projected {
    heads: Heads,
    z_btgv: Tensor,
    /// The last inputs of the convolution.
    conv_state: Option<Tensor>,
}

struct Heads {
    q_bthk: Tensor,
    k_bthk: Tensor,
    v_btgv: Tensor,
    decay_btg: Tensor,
    beta_btg: Tensor,
}
