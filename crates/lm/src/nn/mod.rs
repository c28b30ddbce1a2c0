//! The layers that models are made of. Names of fields are checkpoint keys.

pub mod ablation;
pub mod attention;
pub mod build;
pub mod gated_delta_net;
pub mod linear;
pub mod mlp;
pub mod norm;
pub mod params;

pub use ablation::Ablation;
pub use attention::GatedAttention;
pub use build::{Builder, Init, Random, Source};
pub use gated_delta_net::GatedDeltaNet;
pub use linear::Linear;
pub use mlp::Mlp;
pub use norm::RmsNorm;
