//! Language models and their files: build, load, save, generate, measure.
//!
//! A model is one file in [`models`], named by the `model_type` of its `config.json`, and one line in
//! [`models::MODELS`]. Its layers are in [`nn`]; the names of their fields are the keys of a checkpoint.

pub mod cache;
pub mod chat_template;
pub mod checkpoint;
pub mod convert;
pub mod formats;
pub mod generate;
pub mod models;
pub mod nn;
pub mod perplexity;
pub mod sampler;
pub mod scheme;
pub mod session;
mod weights;

pub use cache::{Cache, LayerCache, LayerShape};
pub use chat_template::ChatTemplate;
pub use checkpoint::{CheckpointInfo, Loaded, TensorInfo, check_destination, inspect, load, save};
pub use convert::{Change, Converted, convert};
pub use formats::config::Config;
pub use formats::tokenizer::Tokenizer;
pub use generate::{Options, Reason, Summary, generate, generate_batch};
pub use models::{Batch, Keep, LanguageModel, build, initialise};
pub use nn::params::{Parameters, parameter_count};
pub use sampler::{Likely, Repetition};
pub use scheme::{Mixed, Scheme};
pub use session::Session;
