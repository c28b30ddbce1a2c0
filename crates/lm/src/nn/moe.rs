//! The feed-forward half of a layer, spread over experts.

use super::mlp::MlpSizes;
use super::{Linear, Mlp};
use crate::init::{Init, VarBuilder};
use crate::params;
use crate::weight::Weight;
use alluvium_core::{Result, Tensor};
use alluvium_ops::{RouteOutput, Routing, add, combine_experts, linear, mul, route, sigmoid, swiglu};

/// A mixture of experts: a SwiGLU of each token's own choice of experts and, where the model has one, a shared expert
/// that is multiplied by a gate for each token.
///
/// `n` tokens, `e` experts, `k` chosen for each token, `d` model width, `i` width of an expert.
///
/// Source: Shazeer et al. 2017, arXiv:1701.06538; `Qwen3NextSparseMoeBlock` and `Qwen3MoeSparseMoeBlock` in
/// mlx-lm.
#[derive(Clone, Debug)]
pub struct Mixture {
    gate: Linear,
    switch_mlp: Experts,
    shared_expert: Option<Mlp>,
    shared_expert_gate: Option<Linear>,
    sizes: MixtureSizes,
}

params!(Mixture { gate, switch_mlp, shared_expert, shared_expert_gate });

/// The experts' matrices, each `[E, O, I]`.
#[derive(Clone, Debug)]
struct Experts {
    gate_proj: Weight,
    up_proj: Weight,
    down_proj: Weight,
}

params!(Experts { gate_proj, up_proj, down_proj });

/// The sizes of a [`Mixture`] and how it starts.
#[derive(Clone, Copy, Debug)]
pub struct MixtureSizes {
    /// Experts.
    pub experts: usize,
    /// How many each token takes.
    pub chosen: usize,
    /// Whether the weights of the chosen sum to 1.
    pub norm_topk_prob: bool,
    /// One expert.
    pub expert: MlpSizes,
    /// The expert that all tokens share; `None` where there is none.
    pub shared: Option<MlpSizes>,
}

impl Mixture {
    /// From its place in a source.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`](crate::init::WeightSource::tensor).
    pub fn build(mut b: VarBuilder, sizes: &MixtureSizes) -> Result<Self> {
        let MixtureSizes { experts, expert, shared, .. } = *sizes;
        let MlpSizes { width, hidden, deviation, output_deviation, .. } = expert;
        let gate = Linear::build(b.pp("gate"), [experts, width], deviation)?;
        let mut place = b.pp("switch_mlp");
        let mut expert =
            |name, rows, columns, deviation| place.pp(name).weight([experts, rows, columns], Init::Normal(deviation));
        let switch_mlp = Experts {
            gate_proj: expert("gate_proj", hidden, width, deviation)?,
            up_proj: expert("up_proj", hidden, width, deviation)?,
            down_proj: expert("down_proj", width, hidden, output_deviation)?,
        };
        Ok(Mixture {
            gate,
            switch_mlp,
            shared_expert: shared.map(|shared| Mlp::build(b.pp("shared_expert"), &shared)).transpose()?,
            shared_expert_gate: match shared {
                Some(_) => Some(Linear::build(b.pp("shared_expert_gate"), [1, width], deviation)?),
                None => None,
            },
            sizes: *sizes,
        })
    }

    /// Of the shape of `x`, `[.., D]`.
    ///
    /// # Errors
    /// As the operations.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let width = x.shape().last();
        let x_nd = x.reshape([x.elements() / width, width])?;
        let logits = self.gate.forward(&x_nd)?;
        let routing = Routing { top_k: self.sizes.chosen, norm_topk_prob: self.sizes.norm_topk_prob };
        let RouteOutput { weights, experts } = route(&logits, routing)?;
        let Experts { gate_proj, up_proj, down_proj } = &self.switch_mlp;
        let h_nki = swiglu(&gate_proj.grouped(&x_nd, &experts)?, &up_proj.grouped(&x_nd, &experts)?)?;
        let y_nd = combine_experts(&down_proj.grouped(&h_nki, &experts)?, &weights)?;
        let (Some(shared), Some(gate)) = (&self.shared_expert, &self.shared_expert_gate) else {
            return y_nd.reshape(x.shape());
        };
        // a column times a row of ones: the token's gate in every column
        let ones = Tensor::full([width, 1], 1.0, x.device())?;
        let gate_nd = linear(&sigmoid(&gate.forward(&x_nd)?)?, &ones)?;
        add(&y_nd, &mul(&shared.forward(&x_nd)?, &gate_nd)?)?.reshape(x.shape())
    }
}
