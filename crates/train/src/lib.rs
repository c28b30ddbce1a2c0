//! Training of hybrid Gated DeltaNet language models: data, optimisers, the loop, what survives it.

mod corpus;
mod curve;
mod data;
mod drill;
mod losses;
mod metrics;
mod optim;
mod settings;
mod state;
mod step;
mod trainer;

pub use corpus::{Corpus, Cursor, Packed};
pub use curve::draw;
pub use data::{Found, Piece, read};
pub use drill::{Drill, Exercise, Measured, STUDY, Score, Task, Variant, measure, measure_all, write_report};
pub use metrics::{Metrics, Record};
pub use optim::{Optimiser, OptimiserKind, Schedule};
pub use settings::{Architecture, Changes, Settings, Size};
pub use trainer::{Ended, Event, Outcome, Places, Trainer};
