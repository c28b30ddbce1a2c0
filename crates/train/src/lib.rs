//! Training of hybrid Gated DeltaNet language models.
//!
//! - [`train_step`] takes one optimizer step of any [`Objective`] on any model with parameters.
//! - [`Trainer`] is the loop for language models: [`data`] × objective × [`Optimizer`], with reports, validation and checkpoints.
//! - [`Run`] begins and resumes a trainer from files: text or a synthetic task, a folder for what comes out.

mod curve;
pub mod data;
pub mod distill;
mod dtype;
mod estimate;
pub mod finetune;
mod folder;
mod meter;
mod metrics;
mod objective;
mod optim;
mod output;
mod preference;
mod run;
mod settings;
mod state;
mod step;
mod trainer;

pub use curve::draw;
pub use dtype::TrainDtype;
pub use estimate::MemoryEstimate;
pub use folder::REPORT;
pub use metrics::{Metrics, MetricsRow};
pub use objective::{NextToken, Objective, correct_targets};
pub use optim::{
    Adafactor, Decayed, LrSchedule, LrScheduleName, Masters, Optimizer, OptimizerConfig, OptimizerKind, Schedule,
};
pub use preference::{LossKind, Preference, References};
pub use run::{Run, RunPaths, TextSummary, task_data};
pub use settings::{Architecture, Overrides, Preset, Settings};
pub use state::DataSource;
pub use step::{Gradients, StepOptions, StepStats, gradients, train_step};
pub use trainer::{
    Event, FirstValidation, LoopSettings, Observer, RunStatus, Trainer, TrainerParts, Validation, ValidationMetric,
};
