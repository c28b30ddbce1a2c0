//! Softmax attention.

use super::linear::Bias;
use super::{Linear, RmsNorm, Rotary};
use crate::cache::{AttentionCache, CacheShape, KvView};
use crate::init::VarBuilder;
use crate::params;
use alluvium_core::{Result, Tensor};
use alluvium_ops::{
    self as ops, AttentionHeads, QkvHeads, QkvNormRopeArgs, attention, concat, mul, qkv_norm_rope, sigmoid, split_in,
};

/// A token mixer that attends with softmax: project, normalize each head, rotate, attend, gate, project. The norms and
/// the gate are optional.
///
/// Shape suffixes: `b` batch, `t` tokens, `d` hidden size, `a` query heads, `g` key heads, `k` head size. With a gate
/// `q_proj` gives each head its query and then its gate.
///
/// Source: Vaswani et al. 2017, arXiv:1706.03762; `Attention` of llama and qwen3, `Qwen3NextAttention` in mlx-lm.
#[derive(Clone, Debug)]
pub struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    config: AttentionConfig,
}

params!(Attention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm });

/// The norm of queries and keys before the rotation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadNorm {
    /// None.
    None,
    /// RMSNorm of each head with this epsilon.
    Rms(f32),
    /// RMSNorm of all heads together with this epsilon.
    RmsOfAll(f32),
}

/// The gate of attention's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// None.
    None,
    /// The sigmoid of the second half of the query projection.
    Sigmoid,
}

/// The sizes of an [`Attention`], its optional parts and its initialization.
#[derive(Clone, Copy, Debug)]
pub struct AttentionConfig {
    /// The size of the model's hidden states.
    pub hidden_size: usize,
    /// The number of query heads.
    pub heads: usize,
    /// The number of key and value heads.
    pub kv_heads: usize,
    /// The size of a head.
    pub head_dim: usize,
    /// The norms of queries and keys.
    pub norm: HeadNorm,
    /// The gate of the output.
    pub gate: Gate,
    /// The bias of the input projections.
    pub bias: Bias,
    /// The bias of the output projection.
    pub output_bias: Bias,
    /// How queries and keys are rotated by their positions.
    pub rotary: Rotary,
    /// The standard deviation of random weights.
    pub init_std: f64,
    /// The standard deviation of the random weights of the output projection.
    pub residual_init_std: f64,
}

impl Attention {
    /// Builds the layer from its place in a source.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`](crate::init::WeightSource::tensor).
    pub fn build(mut b: VarBuilder, config: &AttentionConfig) -> Result<Self> {
        let AttentionConfig { hidden_size, heads, kv_heads, head_dim, init_std, residual_init_std, .. } = *config;
        let queries = if config.gate == Gate::Sigmoid { 2 * heads } else { heads };
        let kv = kv_heads * head_dim;
        let inputs = [("q_proj", queries * head_dim), ("k_proj", kv), ("v_proj", kv)];
        let [q_proj, k_proj, v_proj] = Linear::build_all(&mut b, inputs, hidden_size, init_std, config.bias)?;
        let o_proj =
            Linear::biased(b.pp("o_proj"), [hidden_size, heads * head_dim], residual_init_std, config.output_bias)?;
        let mut norm = |name, heads: usize| match config.norm {
            HeadNorm::None => Ok(None),
            HeadNorm::Rms(eps) => RmsNorm::build(b.pp(name), head_dim, eps).map(Some),
            HeadNorm::RmsOfAll(eps) => RmsNorm::build(b.pp(name), heads * head_dim, eps).map(Some),
        };
        let (q_norm, k_norm) = (norm("q_norm", heads)?, norm("k_norm", kv_heads)?);
        Ok(Attention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm, config: *config })
    }

    /// The shape of the layer's cache for one sequence.
    pub fn cache_shape(&self) -> CacheShape {
        CacheShape::Attention { kv_heads: self.config.kv_heads, head_dim: self.config.head_dim }
    }

    /// The forward pass over whole sequences, for training: `[B, T, D]` to `[B, T, D]`.
    ///
    /// # Errors
    /// As the operations.
    pub fn forward(&self, x_btd: &Tensor, positions: &Tensor, cu_seqlens: Option<&Tensor>) -> Result<Tensor> {
        let heads = self.project(x_btd, positions)?;
        let Heads { q_btak: q, k_btgk: k, v_btgk: v, .. } = &heads;
        let o_btak = attention(ops::AttentionArgs { q, k, v, cu_seqlens, scale: self.scale() })?;
        self.output(&o_btak, heads.gate_btak.as_ref())
    }

    /// The forward pass over new tokens, which are appended to the cache.
    ///
    /// # Errors
    /// As the operations. The cache cannot be used after an error.
    pub fn step(&self, x_btd: &Tensor, positions: &Tensor, cache: &mut AttentionCache) -> Result<Tensor> {
        let heads = match self.project_token(x_btd, positions)? {
            Some(heads) => heads,
            None => self.project(x_btd, positions)?,
        };
        cache.append(&heads.k_btgk, &heads.v_btgk)?;
        let attend = |index| {
            let q = &heads.q_btak.rows(index, 1)?;
            let KvView { keys: k, values: v } = &cache.view(index)?;
            attention(ops::AttentionArgs { q, k, v, cu_seqlens: None, scale: self.scale() })
        };
        let o_btak = match x_btd.shape()[0] {
            1 => attend(0)?,
            batch => {
                let results = (0..batch).map(attend).collect::<Result<Vec<Tensor>>>()?;
                concat(&results.iter().collect::<Vec<_>>(), 0)?
            }
        };
        self.output(&o_btak, heads.gate_btak.as_ref())
    }

    /// The heads of one token of each sequence, where the projections lie one after the other in memory.
    fn project_token(&self, x_b1d: &Tensor, positions: &Tensor) -> Result<Option<Heads>> {
        let AttentionConfig { heads, kv_heads, head_dim, rotary, gate, norm, .. } = self.config;
        let &[b, 1, d] = x_b1d.shape().dims() else { return Ok(None) };
        let per_head = !matches!(norm, HeadNorm::RmsOfAll(_));
        if !per_head || rotary.dynamic.is_some() || rotary.rope.dims == 0 {
            return Ok(None);
        }
        let projections = [&self.q_proj, &self.k_proj, &self.v_proj];
        let Some(row) = Linear::forward_joined(projections, &x_b1d.reshape([b, d])?)? else { return Ok(None) };
        let norms = self.q_norm.as_ref().zip(self.k_norm.as_ref());
        let QkvHeads { q, k, v, gate } = qkv_norm_rope(QkvNormRopeArgs {
            x: &row,
            positions: &positions.reshape([b])?,
            norms: norms.map(|(q, k)| [q.weight(), k.weight()]),
            eps: norms.map_or(0.0, |(q, _)| q.eps()),
            heads: AttentionHeads { queries: heads, kv: kv_heads, dim: head_dim, gated: gate == Gate::Sigmoid },
            rope: rotary.rope,
        })?;
        let token = |x: &Tensor, heads: usize| x.reshape([b, 1, heads, head_dim]);
        Ok(Some(Heads {
            q_btak: token(&q, heads)?,
            k_btgk: token(&k, kv_heads)?,
            v_btgk: token(&v, kv_heads)?,
            gate_btak: gate.map(|gate| token(&gate, heads)).transpose()?,
        }))
    }

    fn project(&self, x_btd: &Tensor, positions: &Tensor) -> Result<Heads> {
        let AttentionConfig { heads, kv_heads, head_dim, rotary, gate, .. } = self.config;
        let [b, t] = [x_btd.shape()[0], x_btd.shape()[1]];
        let [queries, keys, values] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x_btd)?;
        let (q_btak, gate_btak) = match gate {
            Gate::None => (queries.reshape([b, t, heads, head_dim])?, None),
            Gate::Sigmoid => {
                let [q, gate] = split_in(&queries.reshape([b, t, heads, 2 * head_dim])?, [head_dim, head_dim], 3)?;
                (q, Some(sigmoid(&gate)?))
            }
        };
        let k_btgk = keys.reshape([b, t, kv_heads, head_dim])?;
        let rotated = |x: &Tensor, norm: &Option<RmsNorm>| match (norm, self.config.norm) {
            (Some(norm), HeadNorm::RmsOfAll(_)) => {
                let all = x.reshape([b, t, x.elements() / (b * t)])?;
                rotary.rotate(&norm.forward(&all)?.reshape(x.shape())?, positions)
            }
            (Some(norm), _) => rotary.rotate(&norm.forward(x)?, positions),
            (None, _) => rotary.rotate(x, positions),
        };
        Ok(Heads {
            q_btak: rotated(&q_btak, &self.q_norm)?,
            k_btgk: rotated(&k_btgk, &self.k_norm)?,
            v_btgk: values.reshape([b, t, kv_heads, head_dim])?,
            gate_btak,
        })
    }

    fn output(&self, o_btak: &Tensor, gate_btak: Option<&Tensor>) -> Result<Tensor> {
        let [b, t] = [o_btak.shape()[0], o_btak.shape()[1]];
        let gated = match gate_btak {
            Some(gate) => mul(o_btak, gate)?,
            None => o_btak.clone(),
        };
        self.o_proj.forward(&gated.reshape([b, t, self.config.heads * self.config.head_dim])?)
    }

    fn scale(&self) -> f32 {
        (self.config.head_dim as f32).sqrt().recip()
    }
}

struct Heads {
    q_btak: Tensor,
    k_btgk: Tensor,
    v_btgk: Tensor,
    /// The sigmoid of the gates.
    gate_btak: Option<Tensor>,
}
