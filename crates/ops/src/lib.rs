//! Every operation, once: its contract, its gradient, its reference in f64, its kernels, its cases.
//!
//! An operation is one line in [`OPS`] and one folder, here or in its family (`delta`, `experts`, `linalg`,
//! `quantized`); or a row of a table in `elementwise`; or a file of `reduce`. The check, the tests on every device, the
//! benchmark, the generated documentation and `alluvium ops` read that list.

pub mod bench;
pub mod check;
mod common;
pub mod docs;
pub mod op;

// families
mod delta;
mod elementwise;
mod experts;
mod linalg;
mod quantized;
mod reduce;

// shape
mod concat;
mod repeat_heads;
mod slice;
mod split;
mod transpose;
mod write_rows;

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

// loss
mod cross_entropy;
mod kl_div;

// optimizer
mod adamw;
mod clip_by_norm;
mod global_norm;

// sampling
mod sample;

// elementwise
pub use elementwise::binary::{add, mul, sub, swiglu};
pub use elementwise::cast::cast;
pub use elementwise::scale::scale;
pub use elementwise::unary::{exp, gelu, gelu_approx, log, relu, sigmoid, silu, softplus};

// shape
pub use concat::concat;
pub use repeat_heads::repeat_heads;
pub use slice::slice;
pub use split::{split, split_in};
pub use transpose::transpose;
pub use write_rows::write_rows;

// reduce
pub use reduce::{Over, argmax, cumsum, max, mean, sum};

// matmul
pub use linalg::linear::linear;
pub use linalg::matmul::{Transpose, matmul};

// norm
pub use gated_rms_norm::gated_rms_norm;
pub use l2_norm::l2_norm;
pub use rms_norm::rms_norm;

// sequence
pub use causal_conv1d::{Activation, CausalConv1dArgs, ConvOutput, causal_conv1d};
pub use embedding::embedding;
pub use rope::{Pairs, Rope, RopeScaling, rope};

// attention
pub use attention::{AttentionArgs, attention};

// gated delta rule
pub use delta::chunk_cumsum::chunk_cumsum;
pub use delta::chunk_kkt::chunk_kkt;
pub use delta::chunk_output::{ChunkOutputArgs, chunk_output};
pub use delta::chunk_state::{ChunkStateOutput, chunk_state};
pub use delta::gated_delta_rule::{ChunkStates, GatedDeltaArgs, GatedDeltaOutput, gated_delta_rule};
pub use delta::gated_delta_step::{GatedDeltaStepArgs, gated_delta_step};
pub use delta::gdn_gate::{Gates, gdn_gate};
pub use delta::recompute_w_u::{WyRepr, recompute_w_u};
pub use delta::solve_tril::solve_tril;

// loss
pub use cross_entropy::{CrossEntropyArgs, Reduction, cross_entropy};
pub use kl_div::kl_div;

// optimizer
pub use adamw::{AdamW, AdamWState, adamw};
pub use clip_by_norm::clip_by_norm;
pub use global_norm::global_norm;
pub use linalg::newton_schulz::newton_schulz;

// quantized
pub use quantized::dequantize::dequantize;
pub use quantized::quantize::quantize;
pub use quantized::quantize_affine::quantize_affine;
pub use quantized::quantized_embedding::quantized_embedding;
pub use quantized::quantized_matmul::quantized_matmul;
pub use quantized::{Packed, Packing, Quantized};

// mixture of experts
pub use experts::combine_experts::combine_experts;
pub use experts::grouped_matmul::grouped_matmul;
pub use experts::quantized_grouped_matmul::quantized_grouped_matmul;
pub use experts::route::{RouteOutput, Routing, route};

// sampling
pub use sample::{Sampling, sample};

#[doc(hidden)]
pub use linalg::gpu::unreached_shaders;
pub use op::{Case, Cost, Fill, Given, Op, Options, Oversize};

/// Makes the list of operations from their names and entries, and a macro that tests call with the names.
macro_rules! operations {
    ($d:tt $($name:ident: $entry:path,)*) => {
        /// The one list of operations.
        pub static OPS: &[&Op] = &[$(&$entry),*];

        /// Calls a macro with the names of all operations: `callback! { add sub mul … }`. Tests make a module of each.
        #[macro_export]
        macro_rules! for_each_op {
            ($d callback:ident) => { $d callback! { $($name)* } };
        }
    };
}

#[rustfmt::skip]
operations! { $
    // elementwise
    add: elementwise::binary::add::OP,
    sub: elementwise::binary::sub::OP,
    mul: elementwise::binary::mul::OP,
    scale: elementwise::scale::OP,
    silu: elementwise::unary::silu::OP,
    sigmoid: elementwise::unary::sigmoid::OP,
    swiglu: elementwise::binary::swiglu::OP,
    cast: elementwise::cast::OP,
    softplus: elementwise::unary::softplus::OP,
    gelu: elementwise::unary::gelu::OP,
    gelu_approx: elementwise::unary::gelu_approx::OP,
    relu: elementwise::unary::relu::OP,
    exp: elementwise::unary::exp::OP,
    log: elementwise::unary::log::OP,

    // shape
    slice: slice::OP,
    split: split::OP,
    concat: concat::OP,
    repeat_heads: repeat_heads::OP,
    write_rows: write_rows::OP,
    transpose: transpose::OP,

    // reduce
    sum: reduce::SUM,
    mean: reduce::MEAN,
    max: reduce::MAX,
    argmax: reduce::ARGMAX,
    cumsum: reduce::CUMSUM,

    // matmul
    matmul: linalg::matmul::OP,
    linear: linalg::linear::OP,

    // norm
    l2_norm: l2_norm::OP,
    gated_rms_norm: gated_rms_norm::OP,
    rms_norm: rms_norm::OP,

    // sequence
    causal_conv1d: causal_conv1d::OP,
    rope: rope::OP,
    embedding: embedding::OP,

    // attention
    attention: attention::OP,

    // gated delta rule
    gated_delta_rule: delta::gated_delta_rule::OP,
    gated_delta_step: delta::gated_delta_step::OP,
    gdn_gate: delta::gdn_gate::OP,
    chunk_cumsum: delta::chunk_cumsum::OP,
    chunk_kkt: delta::chunk_kkt::OP,
    solve_tril: delta::solve_tril::OP,
    recompute_w_u: delta::recompute_w_u::OP,
    chunk_state: delta::chunk_state::OP,
    chunk_output: delta::chunk_output::OP,

    // loss
    cross_entropy: cross_entropy::OP,
    kl_div: kl_div::OP,

    // optimizer
    adamw: adamw::OP,
    global_norm: global_norm::OP,
    clip_by_norm: clip_by_norm::OP,
    newton_schulz: linalg::newton_schulz::OP,

    // quantized
    quantize_affine: quantized::quantize_affine::OP,
    quantize: quantized::quantize::OP,
    dequantize: quantized::dequantize::OP,
    quantized_matmul: quantized::quantized_matmul::OP,
    quantized_embedding: quantized::quantized_embedding::OP,

    // mixture of experts
    route: experts::route::OP,
    grouped_matmul: experts::grouped_matmul::OP,
    quantized_grouped_matmul: experts::quantized_grouped_matmul::OP,
    combine_experts: experts::combine_experts::OP,

    // sampling
    sample: sample::OP,
}

/// The operation of this name.
pub fn find(name: &str) -> Option<&'static Op> {
    OPS.iter().copied().find(|op| op.name() == name)
}
