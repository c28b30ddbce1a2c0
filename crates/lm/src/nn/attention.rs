//! Softmax attention whose result is gated.

use super::build::Builder;
use super::{Linear, RmsNorm};
use crate::cache::AttentionCache;
use crate::params;
use alluvium_core::{Result, Tensor};
use alluvium_ops::{Attention, Rope, attention, mul, rope, sigmoid, split};

/// The token mixer of every fourth layer: project, norm each head, rotate, attend, gate, project.
///
/// Shape suffixes: `b` batch, `t` tokens, `s` tokens seen, `d` model width, `a` query heads, `g` key heads, `k` head
/// width. `q_proj` gives each head its query and then its gate.
///
/// Source: `Qwen3NextAttention` in mlx-lm and transformers.
#[derive(Clone, Debug)]
pub struct GatedAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    sizes: AttentionSizes,
}

params!(GatedAttention { q_proj, k_proj, v_proj, o_proj, q_norm, k_norm });

/// The sizes of a [`GatedAttention`] and how it starts.
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
    /// Added to the mean square in the norms.
    pub eps: f32,
    /// How positions turn queries and keys.
    pub rope: Rope,
    /// The standard deviation of new weights.
    pub deviation: f64,
    /// That of the projection that adds to the residual stream.
    pub output_deviation: f64,
}

impl GatedAttention {
    /// From its place in a source.
    ///
    /// # Errors
    /// As [`Source::tensor`](super::Source::tensor).
    pub fn build(mut b: Builder, sizes: &AttentionSizes) -> Result<Self> {
        let AttentionSizes { width, heads, kv_heads, head, eps, deviation, output_deviation, .. } = *sizes;
        Ok(GatedAttention {
            q_proj: Linear::build(b.at("q_proj"), [2 * heads * head, width], deviation)?,
            k_proj: Linear::build(b.at("k_proj"), [kv_heads * head, width], deviation)?,
            v_proj: Linear::build(b.at("v_proj"), [kv_heads * head, width], deviation)?,
            o_proj: Linear::build(b.at("o_proj"), [width, heads * head], output_deviation)?,
            q_norm: RmsNorm::build(b.at("q_norm"), head, eps)?,
            k_norm: RmsNorm::build(b.at("k_norm"), head, eps)?,
            sizes: *sizes,
        })
    }

    /// All tokens at once, as training has them: `[B, T, D]` to `[B, T, D]`.
    ///
    /// # Errors
    /// As the operations.
    pub fn forward(&self, x_btd: &Tensor, positions: &Tensor, cu_seqlens: Option<&Tensor>) -> Result<Tensor> {
        let heads = self.project(x_btd, positions)?;
        let Heads { q_btak: q, k_btgk: k, v_btgk: v, .. } = &heads;
        let o_btak = attention(Attention { q, k, v, cu_seqlens, scale: self.scale() })?;
        self.output(&o_btak, &heads.gate_btak)
    }

    /// New tokens after those in the cache, which takes them in.
    ///
    /// # Errors
    /// As the operations; the cache is of no use after one.
    pub fn step(&self, x_btd: &Tensor, positions: &Tensor, cache: &mut AttentionCache) -> Result<Tensor> {
        let heads = self.project(x_btd, positions)?;
        let o_btak = cache.attend(&heads.q_btak, &heads.k_btgk, &heads.v_btgk, self.scale())?;
        self.output(&o_btak, &heads.gate_btak)
    }

    fn project(&self, x_btd: &Tensor, positions: &Tensor) -> Result<Heads> {
        let AttentionSizes { heads, kv_heads, head, rope: turn, .. } = self.sizes;
        let [b, t] = [x_btd.shape()[0], x_btd.shape()[1]];
        let queries = self.q_proj.forward(x_btd)?.reshape([b, t, heads, 2 * head])?;
        let mut parts = split(&queries, &[head, head], 3)?.into_iter();
        let (q_btak, gate_btak) = match (parts.next(), parts.next()) {
            (Some(q), Some(gate)) => (q, gate),
            _ => return Err(alluvium_core::Error::value("split", "two parts were asked for, fewer came")),
        };
        let k_btgk = self.k_proj.forward(x_btd)?.reshape([b, t, kv_heads, head])?;
        Ok(Heads {
            q_btak: rope(&self.q_norm.forward(&q_btak)?, positions, turn)?,
            k_btgk: rope(&self.k_norm.forward(&k_btgk)?, positions, turn)?,
            v_btgk: self.v_proj.forward(x_btd)?.reshape([b, t, kv_heads, head])?,
            gate_btak,
        })
    }

    fn output(&self, o_btak: &Tensor, gate_btak: &Tensor) -> Result<Tensor> {
        let [b, t] = [o_btak.shape()[0], o_btak.shape()[1]];
        let gated = mul(o_btak, &sigmoid(gate_btak)?)?;
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
    gate_btak: Tensor,
}
