//! The feed-forward network of a layer as a mixture of experts.

use super::mlp::MlpConfig;
use super::{Linear, Mlp};
use crate::init::{Init, VarBuilder};
use crate::params;
use crate::weight::Weight;
use alluvium_core::{DType, Result, Tensor};
use alluvium_ops::{RouteOutput, Routing, add, cast, combine_experts, linear, mul, route, sigmoid, swiglu};

/// A sparse mixture of experts: each token runs through its `top_k` experts, which are SwiGLU networks, and through the
/// shared expert, where the model has one, which is multiplied by a gate for each token.
///
/// `n` tokens, `e` experts, `k` experts per token, `d` hidden size, `i` intermediate size of an
/// expert.
///
/// Source: Shazeer et al. 2017, arXiv:1701.06538; `Qwen3NextSparseMoeBlock` and `Qwen3MoeSparseMoeBlock` in
/// mlx-lm.
#[derive(Clone, Debug)]
pub struct SparseMoe {
    gate: Linear,
    switch_mlp: Experts,
    shared_expert: Option<Mlp>,
    shared_expert_gate: Option<Linear>,
    config: SparseMoeConfig,
}

params!(SparseMoe { gate, switch_mlp, shared_expert, shared_expert_gate });

/// The experts' matrices, each `[E, O, I]`.
#[derive(Clone, Debug)]
struct Experts {
    gate_proj: Weight,
    up_proj: Weight,
    down_proj: Weight,
}

params!(Experts { gate_proj, up_proj, down_proj });

/// The sizes of a [`SparseMoe`] and its initialization.
#[derive(Clone, Copy, Debug)]
pub struct SparseMoeConfig {
    /// The number of experts.
    pub num_experts: usize,
    /// The number of experts per token.
    pub top_k: usize,
    /// Whether the weights of a token's experts are normalized to sum to 1.
    pub norm_topk_prob: bool,
    /// The sizes of one expert.
    pub expert: MlpConfig,
    /// The sizes of the shared expert; `None` where there is none.
    pub shared: Option<MlpConfig>,
}

impl SparseMoe {
    /// Builds the network from its place in a source.
    ///
    /// # Errors
    /// As [`WeightSource::tensor`](crate::init::WeightSource::tensor).
    pub fn build(mut b: VarBuilder, config: &SparseMoeConfig) -> Result<Self> {
        let SparseMoeConfig { num_experts, expert, shared, .. } = *config;
        let MlpConfig { hidden_size, intermediate_size, init_std, residual_init_std, .. } = expert;
        let gate = Linear::build(b.pp("gate"), [num_experts, hidden_size], init_std)?;
        let mut place = b.pp("switch_mlp");
        let mut expert =
            |name, rows, columns, init_std| place.pp(name).weight([num_experts, rows, columns], Init::Normal(init_std));
        let switch_mlp = Experts {
            gate_proj: expert("gate_proj", intermediate_size, hidden_size, init_std)?,
            up_proj: expert("up_proj", intermediate_size, hidden_size, init_std)?,
            down_proj: expert("down_proj", hidden_size, intermediate_size, residual_init_std)?,
        };
        Ok(SparseMoe {
            gate,
            switch_mlp,
            shared_expert: shared.map(|shared| Mlp::build(b.pp("shared_expert"), &shared)).transpose()?,
            shared_expert_gate: match shared {
                Some(_) => Some(Linear::build(b.pp("shared_expert_gate"), [1, hidden_size], init_std)?),
                None => None,
            },
            config: *config,
        })
    }

    /// `[.., D]` to `[.., D]`.
    ///
    /// # Errors
    /// As the operations.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden_size = x.shape().last();
        let x_nd = x.reshape([x.elements() / hidden_size, hidden_size])?;
        // f32: a rounded logit may change the choice of experts
        let logits = self.gate.forward(&cast(&x_nd, DType::F32)?)?;
        let routing = Routing { top_k: self.config.top_k, norm_topk_prob: self.config.norm_topk_prob };
        let RouteOutput { weights, experts } = route(&logits, routing)?;
        let Experts { gate_proj, up_proj, down_proj } = &self.switch_mlp;
        let h_nki = swiglu(&gate_proj.grouped(&x_nd, &experts)?, &up_proj.grouped(&x_nd, &experts)?)?;
        let y_nd = combine_experts(&down_proj.grouped(&h_nki, &experts)?, &weights)?;
        let (Some(shared), Some(gate)) = (&self.shared_expert, &self.shared_expert_gate) else {
            return y_nd.reshape(x.shape());
        };
        // an outer product with ones broadcasts the gate of each token over the columns
        let ones = Tensor::full([hidden_size, 1], 1.0, x.device())?;
        let gate_nd = linear(&sigmoid(&gate.forward(&x_nd)?)?, &ones)?;
        add(&y_nd, &mul(&shared.forward(&x_nd)?, &gate_nd)?)?.reshape(x.shape())
    }
}
