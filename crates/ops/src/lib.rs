//! Every operation, once: its contract, its gradient, its reference in f64, its kernels, its cases.
//!
//! An operation is one folder here and one line in [`OPS`]. The check, the tests on every device, the benchmark, the
//! generated documentation and `alluvium ops` all read that list.

pub mod bench;
pub mod check;
pub mod common;
pub mod docs;
pub mod op;

// elementwise
mod add;
mod cast;
mod exp;
mod gelu;
mod gelu_approx;
mod log;
mod mul;
mod relu;
mod scale;
mod sigmoid;
mod silu;
mod softplus;
mod sub;
mod swiglu;

// shape
mod concat;
mod repeat_heads;
mod slice;
mod split;
mod transpose;
mod write_rows;

// reduce
mod argmax;
mod cumsum;
mod max;
mod mean;
mod sum;

// matmul
mod linear;
mod matmul;

// norm
mod gated_rms_norm;
mod l2_norm;
mod rms_norm;

// sequence
mod causal_conv1d;
mod embedding;
mod rope;

// attention
mod attention;

// gated delta rule
mod chunk_cumsum;
mod chunk_kkt;
mod chunk_output;
mod chunk_state;
mod gated_delta_rule;
mod gated_delta_step;
mod gdn_gate;
mod recompute_w_u;
mod solve_tril;

// loss
mod cross_entropy;
mod kl_div;

// optimiser
mod adamw;
mod clip_by_norm;
mod global_norm;
mod newton_schulz;

// quantised
mod dequantize;
mod quantize;
mod quantize_affine;
mod quantized_embedding;
mod quantized_matmul;

// mixture of experts
mod combine_experts;
mod grouped_matmul;
mod quantized_grouped_matmul;
mod route;

// sampling
mod sample;

// elementwise
pub use add::add;
pub use cast::cast;
pub use exp::exp;
pub use gelu::gelu;
pub use gelu_approx::gelu_approx;
pub use log::log;
pub use mul::mul;
pub use relu::relu;
pub use scale::scale;
pub use sigmoid::sigmoid;
pub use silu::silu;
pub use softplus::softplus;
pub use sub::sub;
pub use swiglu::swiglu;

// shape
pub use concat::concat;
pub use repeat_heads::repeat_heads;
pub use slice::slice;
pub use split::{split, split_in};
pub use transpose::transpose;
pub use write_rows::write_rows;

// reduce
pub use argmax::argmax;
pub use common::reduce::Over;
pub use cumsum::cumsum;
pub use max::max;
pub use mean::mean;
pub use sum::sum;

// matmul
pub use linear::linear;
pub use matmul::{Transpose, matmul};

// norm
pub use gated_rms_norm::gated_rms_norm;
pub use l2_norm::l2_norm;
pub use rms_norm::rms_norm;

// sequence
pub use causal_conv1d::{Activation, CausalConv1d, Convolved, causal_conv1d};
pub use embedding::embedding;
pub use rope::{Pairs, Rope, RopeScaling, rope};

// attention
pub use attention::{Attention, attention};

// gated delta rule
pub use chunk_cumsum::chunk_cumsum;
pub use chunk_kkt::chunk_kkt;
pub use chunk_output::{ChunkOutput, chunk_output};
pub use chunk_state::{ChunkState, chunk_state};
pub use gated_delta_rule::{ChunkStates, Delta, GatedDelta, gated_delta_rule};
pub use gated_delta_step::{GatedDeltaStep, gated_delta_step};
pub use gdn_gate::{Gates, gdn_gate};
pub use recompute_w_u::{WU, recompute_w_u};
pub use solve_tril::solve_tril;

// loss
pub use cross_entropy::{CrossEntropy, Reduction, cross_entropy};
pub use kl_div::kl_div;

// optimiser
pub use adamw::{AdamW, AdamWState, Correction, adamw};
pub use clip_by_norm::clip_by_norm;
pub use global_norm::global_norm;
pub use newton_schulz::newton_schulz;

// quantised
pub use common::quantized::{Packed, Packing, Quantized};
pub use dequantize::dequantize;
pub use quantize::quantize;
pub use quantize_affine::quantize_affine;
pub use quantized_embedding::quantized_embedding;
pub use quantized_matmul::quantized_matmul;

// mixture of experts
pub use combine_experts::combine_experts;
pub use grouped_matmul::grouped_matmul;
pub use quantized_grouped_matmul::quantized_grouped_matmul;
pub use route::{Normalise, Route, route};

// sampling
pub use sample::{Sampling, sample};

pub use op::{Case, Cost, Given, Op};

/// The one list of operations.
#[rustfmt::skip]
pub static OPS: &[&Op] = &[
    // elementwise
    &add::OP,
    &sub::OP,
    &mul::OP,
    &scale::OP,
    &silu::OP,
    &sigmoid::OP,
    &swiglu::OP,
    &cast::OP,
    &softplus::OP,
    &gelu::OP,
    &gelu_approx::OP,
    &relu::OP,
    &exp::OP,
    &log::OP,

    // shape
    &slice::OP,
    &split::OP,
    &concat::OP,
    &repeat_heads::OP,
    &write_rows::OP,
    &transpose::OP,

    // reduce
    &sum::OP,
    &mean::OP,
    &max::OP,
    &argmax::OP,
    &cumsum::OP,

    // matmul
    &matmul::OP,
    &linear::OP,

    // norm
    &l2_norm::OP,
    &gated_rms_norm::OP,
    &rms_norm::OP,

    // sequence
    &causal_conv1d::OP,
    &rope::OP,
    &embedding::OP,

    // attention
    &attention::OP,

    // gated delta rule
    &gated_delta_rule::OP,
    &gated_delta_step::OP,
    &gdn_gate::OP,
    &chunk_cumsum::OP,
    &chunk_kkt::OP,
    &solve_tril::OP,
    &recompute_w_u::OP,
    &chunk_state::OP,
    &chunk_output::OP,

    // loss
    &cross_entropy::OP,
    &kl_div::OP,

    // optimiser
    &adamw::OP,
    &global_norm::OP,
    &clip_by_norm::OP,
    &newton_schulz::OP,

    // quantised
    &quantize_affine::OP,
    &quantize::OP,
    &dequantize::OP,
    &quantized_matmul::OP,
    &quantized_embedding::OP,

    // mixture of experts
    &route::OP,
    &grouped_matmul::OP,
    &quantized_grouped_matmul::OP,
    &combine_experts::OP,

    // sampling
    &sample::OP,
];

/// The operation of this name.
pub fn find(name: &str) -> Option<&'static Op> {
    OPS.iter().copied().find(|op| op.name() == name)
}
