//! The input projections of a Gated DeltaNet layer, in the layouts of checkpoints.

use super::config::{GatedDeltaNetConfig, Layout};
use crate::init::VarBuilder;
use crate::nn::Linear;
use crate::nn::linear::Bias;
use crate::params;
use alluvium_core::{Result, Tensor};
use alluvium_ops::{HeadLayout, concat, split_in};

/// The projections, in the layout of the checkpoint.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)] // a model has a few hundred at most
pub(super) enum InProj {
    Separate(Separate),
    Merged(Merged),
    Split(Split),
}

#[derive(Clone, Debug)]
pub(super) struct Separate {
    in_proj_qkv: Linear,
    in_proj_z: Linear,
    in_proj_b: Linear,
    in_proj_a: Linear,
}

params!(Separate { in_proj_qkv, in_proj_z, in_proj_b, in_proj_a });

#[derive(Clone, Debug)]
pub(super) struct Merged {
    in_proj_qkvz: Linear,
    in_proj_ba: Linear,
}

params!(Merged { in_proj_qkvz, in_proj_ba });

#[derive(Clone, Debug)]
pub(super) struct Split {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    g_proj: Linear,
    b_proj: Linear,
    a_proj: Linear,
}

params!(Split { q_proj, k_proj, v_proj, g_proj, b_proj, a_proj });

params!(
    enum InProj {
        Separate,
        Merged,
        Split,
    }
);

/// The projected input. The channels are all queries, then all keys, then all values.
pub(super) struct Inputs {
    pub(super) qkv_btc: Tensor,
    pub(super) z_btv: Tensor,
    pub(super) b_btg: Tensor,
    pub(super) a_btg: Tensor,
}

impl InProj {
    /// All projections of `x [B, D]` side by side, `[B, W]`, in the order that [`InProj::head_layout`] says.
    pub(super) fn row(&self, x_bd: &Tensor) -> Result<Tensor> {
        match self {
            InProj::Separate(Separate { in_proj_qkv, in_proj_z, in_proj_b, in_proj_a }) => {
                row([in_proj_qkv, in_proj_z, in_proj_b, in_proj_a], x_bd)
            }
            InProj::Merged(Merged { in_proj_qkvz, in_proj_ba }) => row([in_proj_qkvz, in_proj_ba], x_bd),
            InProj::Split(Split { q_proj, k_proj, v_proj, g_proj, b_proj, a_proj }) => {
                row([q_proj, k_proj, v_proj, g_proj, b_proj, a_proj], x_bd)
            }
        }
    }

    /// The order of the projections in a row.
    pub(super) fn head_layout(&self) -> HeadLayout {
        match self {
            InProj::Separate(_) | InProj::Split(_) => HeadLayout::Separate,
            InProj::Merged(_) => HeadLayout::ByKeyHead,
        }
    }

    pub(super) fn build(b: &mut VarBuilder, config: &GatedDeltaNetConfig) -> Result<Self> {
        let GatedDeltaNetConfig { value_heads, layout, .. } = *config;
        let (channels, values) = (config.channels(), config.value_channels());
        let keys = config.key_channels();
        Ok(match layout {
            Layout::Separate => {
                let parts = [
                    ("in_proj_qkv", channels),
                    ("in_proj_z", values),
                    ("in_proj_b", value_heads),
                    ("in_proj_a", value_heads),
                ];
                let [in_proj_qkv, in_proj_z, in_proj_b, in_proj_a] = all(b, parts, config)?;
                InProj::Separate(Separate { in_proj_qkv, in_proj_z, in_proj_b, in_proj_a })
            }
            Layout::Merged => {
                let parts = [("in_proj_qkvz", channels + values), ("in_proj_ba", 2 * value_heads)];
                let [in_proj_qkvz, in_proj_ba] = all(b, parts, config)?;
                InProj::Merged(Merged { in_proj_qkvz, in_proj_ba })
            }
            Layout::Split => {
                let parts = [
                    ("q_proj", keys),
                    ("k_proj", keys),
                    ("v_proj", values),
                    ("g_proj", values),
                    ("b_proj", value_heads),
                    ("a_proj", value_heads),
                ];
                let [q_proj, k_proj, v_proj, g_proj, b_proj, a_proj] = all(b, parts, config)?;
                InProj::Split(Split { q_proj, k_proj, v_proj, g_proj, b_proj, a_proj })
            }
        })
    }

    pub(super) fn forward(&self, x_btd: &Tensor, config: &GatedDeltaNetConfig) -> Result<Inputs> {
        match self {
            InProj::Separate(Separate { in_proj_qkv, in_proj_z, in_proj_b, in_proj_a }) => {
                let parts = [in_proj_qkv, in_proj_z, in_proj_b, in_proj_a];
                let [qkv_btc, z_btv, b_btg, a_btg] = Linear::forward_all(parts, x_btd)?;
                Ok(Inputs { qkv_btc, z_btv, b_btg, a_btg })
            }
            InProj::Merged(part) => part.forward(x_btd, config),
            InProj::Split(Split { q_proj, k_proj, v_proj, g_proj, b_proj, a_proj }) => {
                let parts = [q_proj, k_proj, v_proj, g_proj, b_proj, a_proj];
                let [q, k, v, z_btv, b_btg, a_btg] = Linear::forward_all(parts, x_btd)?;
                Ok(Inputs { qkv_btc: concat(&[&q, &k, &v], 2)?, z_btv, b_btg, a_btg })
            }
        }
    }
}

fn all<const N: usize>(
    b: &mut VarBuilder,
    parts: [(&str, usize); N],
    config: &GatedDeltaNetConfig,
) -> Result<[Linear; N]> {
    Linear::build_all(b, parts, config.hidden_size, config.init_std, Bias::None)
}

/// All projections of each row side by side: `[.., W]`.
fn row<const N: usize>(projections: [&Linear; N], x: &Tensor) -> Result<Tensor> {
    if let Some(row) = Linear::forward_joined(projections, x)? {
        return Ok(row);
    }
    let parts = Linear::forward_all(projections, x)?;
    concat(&parts.each_ref(), x.shape().rank() - 1)
}

impl Merged {
    fn forward(&self, x_btd: &Tensor, config: &GatedDeltaNetConfig) -> Result<Inputs> {
        let GatedDeltaNetConfig { key_heads: h, value_heads: g, key_dim, value_dim, .. } = *config;
        let [b, t] = [x_btd.shape()[0], x_btd.shape()[1]];
        let shared = g / h;
        let [qkvz, ba] = Linear::forward_all([&self.in_proj_qkvz, &self.in_proj_ba], x_btd)?;
        let qkvz = qkvz.reshape([b, t, h, 2 * key_dim + 2 * shared * value_dim])?;
        let [q, k, v, z] = parts(&qkvz, [key_dim, key_dim, shared * value_dim, shared * value_dim])?;
        let ba = ba.reshape([b, t, h, 2 * shared])?;
        let [b_bthr, a_bthr] = parts(&ba, [shared, shared])?;
        let flat = |x: &Tensor| x.reshape([b, t, x.elements() / (b * t)]);
        Ok(Inputs {
            qkv_btc: concat(&[&flat(&q)?, &flat(&k)?, &flat(&v)?], 2)?,
            z_btv: flat(&z)?,
            b_btg: flat(&b_bthr)?,
            a_btg: flat(&a_bthr)?,
        })
    }
}

/// Splits the last of four axes.
fn parts<const N: usize>(x: &Tensor, config: [usize; N]) -> Result<[Tensor; N]> {
    split_in(x, config, 3)
}
