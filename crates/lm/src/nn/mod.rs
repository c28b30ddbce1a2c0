//! The layers that models are made of. Names of fields are checkpoint keys.

pub mod ablation;
pub mod attention;
pub mod decoder;
pub mod gated_delta_net;
pub mod linear;
pub mod mlp;
pub mod moe;
pub mod norm;
pub mod rotary;

pub use ablation::Ablation;
pub use attention::Attention;
pub use decoder::{Decoder, FeedForward, Mixer};
pub use gated_delta_net::{GatedDeltaNet, GatedDeltaNetConfig};
pub use linear::{Embedding, Linear};
pub use mlp::Mlp;
pub use moe::SparseMoe;
pub use norm::RmsNorm;
pub use rotary::Rotary;
