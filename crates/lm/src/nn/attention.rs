//! Softmax attention.

use super::linear::Bias;
use super::{Linear, RmsNorm, Rotary};
use crate::cache::{AttentionCache, CacheShape, KvView};
use crate::init::VarBuilder;
use crate::params;
use alluvium_core::{Result, Tensor};
use alluvium_ops::{self as ops, attention, concat, mul, sigmoid, split_in};

/// A token mixer that attends with softmax: project, norm each head, rotate, attend, gate, project. The norms and the
/// gate are there where the model has them.
///
/// Shape suffixes: `b` batch, `t` tokens, `d` model width, `a` query heads, `g` key heads, `k` head width. With a gate
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
    sizes: AttentionSizes,
}

params!(Attention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm });

/// Whether the heads' queries and keys are normed before they turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HeadNorm {
    /// They are not.
    None,
    /// By root-mean-square, with this added to the mean square.
    Rms(f32),
}

/// Whether what attention gives is gated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It is not.
    None,
    /// By the sigmoid of a second half of the query projection.
    Sigmoid,
}

/// The sizes of an [`Attention`], what it has, and how it starts.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSizes {
    /// The model's width.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// The width of a head.
    pub head: usize,
    /// The norms of queries and keys.
    pub norm: HeadNorm,
    /// The gate of the result.
    pub gate: Gate,
    /// Of the projections of the input.
    pub bias: Bias,
    /// Of the projection that adds to the residual stream.
    pub output_bias: Bias,
    /// How queries and keys are rotated by their positions.
    pub rotary: Rotary,
    /// The standard deviation of new weights.
    pub deviation: f64,
    /// That of the projection that adds to the residual stream.
    pub output_deviation: f64,
}

impl Attention {
    /// From its place in a source.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`](crate::init::WeightSource::tensor).
    pub fn build(mut b: VarBuilder, sizes: &AttentionSizes) -> Result<Self> {
        let AttentionSizes { width, heads, kv_heads, head, deviation, output_deviation, .. } = *sizes;
        let queries = if sizes.gate == Gate::Sigmoid { 2 * heads } else { heads };
        let mut linear = |name, shape, deviation| Linear::biased(b.pp(name), shape, deviation, sizes.bias);
        let q_proj = linear("q_proj", [queries * head, width], deviation)?;
        let k_proj = linear("k_proj", [kv_heads * head, width], deviation)?;
        let v_proj = linear("v_proj", [kv_heads * head, width], deviation)?;
        let o_proj = Linear::biased(b.pp("o_proj"), [width, heads * head], output_deviation, sizes.output_bias)?;
        let mut norm = |name| match sizes.norm {
            HeadNorm::None => Ok(None),
            HeadNorm::Rms(eps) => RmsNorm::build(b.pp(name), head, eps).map(Some),
        };
        let (q_norm, k_norm) = (norm("q_norm")?, norm("k_norm")?);
        Ok(Attention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm, sizes: *sizes })
    }

    /// The sizes of what it remembers of a sequence.
    pub fn cache_shape(&self) -> CacheShape {
        CacheShape::Attention { heads: self.sizes.kv_heads, width: self.sizes.head }
    }

    /// All tokens at once, as training has them: `[B, T, D]` to `[B, T, D]`.
    ///
    /// # Errors
    /// As the operations.
    pub fn forward(&self, x_btd: &Tensor, positions: &Tensor, cu_seqlens: Option<&Tensor>) -> Result<Tensor> {
        let heads = self.project(x_btd, positions)?;
        let Heads { q_btak: q, k_btgk: k, v_btgk: v, .. } = &heads;
        let o_btak = attention(ops::AttentionArgs { q, k, v, cu_seqlens, scale: self.scale() })?;
        self.output(&o_btak, heads.gate_btak.as_ref())
    }

    /// New tokens after those in the cache, which takes them in.
    ///
    /// # Errors
    /// As the operations; the cache is of no use after one.
    pub fn step(&self, x_btd: &Tensor, positions: &Tensor, cache: &mut AttentionCache) -> Result<Tensor> {
        let heads = self.project(x_btd, positions)?;
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

    fn project(&self, x_btd: &Tensor, positions: &Tensor) -> Result<Heads> {
        let AttentionSizes { heads, kv_heads, head, rotary, gate, .. } = self.sizes;
        let [b, t] = [x_btd.shape()[0], x_btd.shape()[1]];
        let [queries, keys, values] = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x_btd)?;
        let (q_btak, gate_btak) = match gate {
            Gate::None => (queries.reshape([b, t, heads, head])?, None),
            Gate::Sigmoid => {
                let [q, gate] = split_in(&queries.reshape([b, t, heads, 2 * head])?, [head, head], 3)?;
                (q, Some(gate))
            }
        };
        let k_btgk = keys.reshape([b, t, kv_heads, head])?;
        let rotated = |x: &Tensor, norm: &Option<RmsNorm>| match norm {
            Some(norm) => rotary.rotate(&norm.forward(x)?, positions),
            None => rotary.rotate(x, positions),
        };
        Ok(Heads {
            q_btak: rotated(&q_btak, &self.q_norm)?,
            k_btgk: rotated(&k_btgk, &self.k_norm)?,
            v_btgk: values.reshape([b, t, kv_heads, head])?,
            gate_btak,
        })
    }

    fn output(&self, o_btak: &Tensor, gate_btak: Option<&Tensor>) -> Result<Tensor> {
        let [b, t] = [o_btak.shape()[0], o_btak.shape()[1]];
        let gated = match gate_btak {
            Some(gate) => mul(o_btak, &sigmoid(gate)?)?,
            None => o_btak.clone(),
        };
        self.o_proj.forward(&gated.reshape([b, t, self.sizes.heads * self.sizes.head])?)
    }

    fn scale(&self) -> f32 {
        (self.sizes.head as f32).sqrt().recip()
    }
}

struct Heads {
    q_btak: Tensor,
    k_btgk: Tensor,
    v_btgk: Tensor,
    gate_btak: Option<Tensor>,
}
