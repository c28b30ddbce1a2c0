//! Every operation, once: its contract, its gradient, its reference in f64, its kernels, its cases.
//!
//! An operation is one line of `operations!` and one folder, here or in its family (`delta`, `experts`, `linalg`,
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
mod add_rms_norm;
mod gated_rms_norm;
mod l2_norm;
mod rms_norm;

// sequence
mod causal_conv1d;
mod embedding;
mod rope;

// attention
mod attention;
mod qkv_norm_rope;

// loss
mod cross_entropy;
mod kl_div;

// optimizer
mod adamw;
mod clip_by_norm;
mod global_norm;

// sampling
mod sample;

pub use op::{Case, Cost, Fill, Given, Op, Options, Oversize};
pub use quantized::{Packed, Packing, Quantized};

/// Kernels that no case here reaches, as adapters get them. Tests read them.
///
/// # Errors
/// Never: every storage dtype of theirs is a floating one.
#[doc(hidden)]
pub fn unreached_shaders() -> alluvium_core::Result<Vec<alluvium_core::gpu::Shader>> {
    let mut shaders = linalg::gpu::unreached_shaders()?;
    shaders.push(cross_entropy::gpu::unreached_shader()?);
    Ok(shaders)
}

/// Makes the list of operations, exports their functions and types, and makes a macro that tests call with the names.
///
/// A line is the operation's name, its module, and there the entry and what is public.
macro_rules! operations {
    ($d:tt $($name:ident: $($module:ident)::+ ::{$entry:ident, $($public:ident),+},)*) => {
        $(pub use $($module)::+::{$($public),+};)*

        /// The one list of operations.
        pub static OPS: &[&Op] = &[$(&$($module)::+::$entry),*];

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
    add: elementwise::binary::add::{OP, add},
    sub: elementwise::binary::sub::{OP, sub},
    mul: elementwise::binary::mul::{OP, mul},
    scale: elementwise::scale::{OP, scale},
    silu: elementwise::unary::silu::{OP, silu},
    sigmoid: elementwise::unary::sigmoid::{OP, sigmoid},
    swiglu: elementwise::binary::swiglu::{OP, swiglu},
    cast: elementwise::cast::{OP, cast},
    softplus: elementwise::unary::softplus::{OP, softplus},
    gelu: elementwise::unary::gelu::{OP, gelu},
    gelu_approx: elementwise::unary::gelu_approx::{OP, gelu_approx},
    relu: elementwise::unary::relu::{OP, relu},
    exp: elementwise::unary::exp::{OP, exp},
    log: elementwise::unary::log::{OP, log},

    // shape
    slice: slice::{OP, slice},
    split: split::{OP, split, split_in},
    concat: concat::{OP, concat},
    repeat_heads: repeat_heads::{OP, repeat_heads},
    write_rows: write_rows::{OP, write_rows},
    transpose: transpose::{OP, transpose},

    // reduce
    sum: reduce::{SUM, sum, Over},
    mean: reduce::{MEAN, mean},
    max: reduce::{MAX, max},
    argmax: reduce::{ARGMAX, argmax},
    cumsum: reduce::{CUMSUM, cumsum},

    // matmul
    matmul: linalg::matmul::{OP, matmul, Transpose},
    linear: linalg::linear::{OP, linear},

    // norm
    l2_norm: l2_norm::{OP, l2_norm},
    gated_rms_norm: gated_rms_norm::{OP, gated_rms_norm},
    rms_norm: rms_norm::{OP, rms_norm},
    add_rms_norm: add_rms_norm::{OP, add_rms_norm, AddRmsNorm},

    // sequence
    causal_conv1d: causal_conv1d::{OP, causal_conv1d, Activation, CausalConv1dArgs, ConvOutput},
    rope: rope::{OP, rope, Pairs, Rope, RopeScaling},
    embedding: embedding::{OP, embedding},

    // attention
    attention: attention::{OP, attention, AttentionArgs},
    qkv_norm_rope: qkv_norm_rope::{OP, qkv_norm_rope, AttentionHeads, QkvHeads, QkvNormRopeArgs},

    // gated delta rule
    gated_delta_rule: delta::gated_delta_rule::{OP, gated_delta_rule, ChunkStates, GatedDeltaArgs, GatedDeltaOutput},
    gated_delta_step: delta::gated_delta_step::{OP, gated_delta_step, GatedDeltaStepArgs},
    gated_delta_net_step: delta::gated_delta_net_step::{
        OP, gated_delta_net_step, GatedDeltaNetStep, GatedDeltaNetStepArgs, HeadLayout
    },
    gdn_gate: delta::gdn_gate::{OP, gdn_gate, Gates},
    chunk_cumsum: delta::chunk_cumsum::{OP, chunk_cumsum},
    chunk_kkt: delta::chunk_kkt::{OP, chunk_kkt},
    solve_tril: delta::solve_tril::{OP, solve_tril},
    recompute_w_u: delta::recompute_w_u::{OP, recompute_w_u, WyRepr},
    chunk_state: delta::chunk_state::{OP, chunk_state, ChunkStateOutput},
    chunk_output: delta::chunk_output::{OP, chunk_output, ChunkOutputArgs},

    // loss
    cross_entropy: cross_entropy::{OP, cross_entropy, CrossEntropyArgs, Reduction},
    quantized_cross_entropy: quantized::quantized_cross_entropy::{OP, quantized_cross_entropy, QuantizedCrossEntropyArgs},
    kl_div: kl_div::{OP, kl_div},

    // optimizer
    adamw: adamw::{OP, adamw, AdamW, AdamWState},
    global_norm: global_norm::{OP, global_norm},
    clip_by_norm: clip_by_norm::{OP, clip_by_norm},
    newton_schulz: linalg::newton_schulz::{OP, newton_schulz},

    // quantized
    quantize_affine: quantized::quantize_affine::{OP, quantize_affine},
    quantize: quantized::quantize::{OP, quantize},
    dequantize: quantized::dequantize::{OP, dequantize},
    quantized_matmul: quantized::quantized_matmul::{OP, quantized_matmul},
    quantized_matmul_swiglu: quantized::quantized_matmul_swiglu::{OP, quantized_matmul_swiglu},
    quantized_embedding: quantized::quantized_embedding::{OP, quantized_embedding},

    // mixture of experts
    route: experts::route::{OP, route, RouteOutput, Routing},
    grouped_matmul: experts::grouped_matmul::{OP, grouped_matmul},
    quantized_grouped_matmul: experts::quantized_grouped_matmul::{OP, quantized_grouped_matmul},
    combine_experts: experts::combine_experts::{OP, combine_experts},

    // sampling
    sample: sample::{OP, sample, Sampling},
}

/// The operation of this name.
pub fn find(name: &str) -> Option<&'static Op> {
    OPS.iter().copied().find(|op| op.name() == name)
}

/// The kernels in CUDA C++, all variants, by name: tests give them to NVIDIA's compiler, which needs no GPU.
pub fn native_sources() -> Vec<(String, String)> {
    let of_delta = delta::gated_delta_rule::native_sources().chain(delta::recompute_w_u::native_sources());
    of_delta.chain(attention::native_sources()).collect()
}
