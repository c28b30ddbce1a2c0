//! The gated delta rule: whole sequences in chunks, single tokens, and the stages of a chunk as operations.
//!
//! For each token, `S ← e^g S (I − β k kᵀ) + β v kᵀ` and `o = scale · S q`. docs/gated_delta_rule.md derives the
//! chunked form.
//!
//! | folder | what is in it |
//! |---|---|
//! | `gated_delta_rule` | all tokens of all sequences, with gradients |
//! | `gated_delta_step` | one token after the other: decoding |
//! | `gated_delta_net_step` | one token of a layer between its projections, in one launch |
//! | `gdn_gate` | the log decay `g` from the layer's projections |
//! | `chunk_cumsum`, `chunk_kkt`, `solve_tril`, `recompute_w_u`, `chunk_state`, `chunk_output` | the stages of the chunked form, in order, under the names of flash-linear-attention |
//! | `chunk` | chunks and heads on the CPU, element-wise stages |
//! | `gpu` | kernels and launches that the stages share |

pub(crate) mod chunk;
pub(crate) mod chunk_cumsum;
pub(crate) mod chunk_kkt;
pub(crate) mod chunk_output;
pub(crate) mod chunk_state;
pub(crate) mod gated_delta_net_step;
pub(crate) mod gated_delta_rule;
pub(crate) mod gated_delta_step;
pub(crate) mod gdn_gate;
pub(crate) mod gpu;
pub(crate) mod recompute_w_u;
pub(crate) mod solve_tril;
