//! Language models and their files: build, load, save, generate, measure.
//!
//! A model is one file in [`models`], named by the `model_type` of its `config.json`, and one entry of the default
//! [`models::Registry`]. Its layers are in [`nn`]; the names of their fields are the keys of a checkpoint.

pub mod adapter;
pub mod cache;
pub mod checkpoint;
pub mod engine;
pub mod formats;
pub mod generate;
pub mod grammar;
pub mod init;
pub mod model;
pub mod models;
pub mod nn;
pub mod parameters;
pub mod perplexity;
pub mod precision;
pub mod quantize;
pub mod tokenizer;
pub mod weight;

pub use adapter::{AdaptedModels, Adapter, FineTuneType, LoraParameters, LowRank, attach_low_rank, detach_adapters};
pub use cache::{Cache, CacheShape, LayerCache};
pub use checkpoint::convert::{Change, Converted, convert, refuse_existing};
pub use checkpoint::{
    CheckpointInfo, LoadOptions, Loaded, TensorInfo, check_destination, inspect, load, load_with, save,
};
pub use checkpoint::{convert_gguf, convert_to_transformers};
pub use engine::{Engine, EngineOptions};
pub use formats::config::Config;
pub use generate::{
    FinishReason, GenerateOptions, GeneratedToken, Generation, GenerationBatch, ReasoningBudget, RepetitionPenalty,
    Request, Session, TokenLogprob, TokenStream, generate, generate_batch,
};
pub use init::{Init, RandomInit, ShapeSource, VarBuilder, WeightSource};
pub use model::{Batch, Checkpointing, LanguageModel, ModelRef};
pub use models::{ModelType, Registry, build, initialize, initialize_decoder};
pub use parameters::{
    ModuleKind, Parameter, Parameters, Role, freeze, join, parameter_count, unfreeze, visit_trainable,
    visit_trainable_mut,
};
pub use precision::{is_kept_in_f32, set_dtype};
pub use quantize::{MixedRecipe, QuantConfig};
pub use tokenizer::chat_template::ChatTemplate;
pub use tokenizer::{Conversation, Message, PromptEnd, Tokenizer};
pub use weight::Weight;

// for `params!`, which must name the tensor's type in crates that depend on this one alone
#[doc(hidden)]
pub use alluvium_core as __core;
