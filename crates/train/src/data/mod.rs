//! Training data: documents from files, token batches without padding, synthetic tasks.

mod chat;
mod corpus;
mod documents;
pub(crate) mod encode;
#[cfg(feature = "parquet")]
mod parquet;
mod samples;
mod split;
mod tasks;

pub use chat::{Targets, read_calibration, read_pairs, read_samples};
pub use corpus::{Corpus, TokenData};
pub use documents::{Document, Skipped, TextFiles, read_text};
pub use samples::{LongSamples, Pairing, Sample, SampleData, SampleOrder, Samples};
pub use split::{Split, split};
pub use tasks::{SequenceSize, Task, TaskData};

use alluvium_core::{Device, Result, Tensor};
use alluvium_lm::Batch;
use serde::{Deserialize, Serialize};

/// Target id of a position that has no target: it adds nothing to the loss and counts for nothing in its mean.
pub const IGNORE_INDEX: u32 = u32::MAX;

/// A source of training batches that can be stopped and resumed.
pub trait TrainingData: Send {
    /// Returns the next batch and advances.
    ///
    /// # Errors
    /// When the batch cannot be made.
    fn next_batch(&mut self) -> Result<PackedBatch>;

    /// The position of the next batch. Together with the data itself it is all that a resumed run needs.
    fn position(&self) -> DataPosition;

    /// Continues at a position that [`TrainingData::position`] returned.
    ///
    /// # Errors
    /// When this data has no such position.
    fn seek(&mut self, position: DataPosition) -> Result<()>;

    /// A hash of the data: a resumed run compares it with the hash in its checkpoint.
    fn fingerprint(&self) -> u64;
}

/// A place in the order of training batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPosition {
    /// Completed passes over the data.
    pub epoch: u64,
    /// Index within the epoch, in units of the data source.
    pub index: u64,
}

/// A batch in one row: sequences side by side without padding, kept apart by `offsets`.
///
/// The convolution, the delta rule and attention start anew at each offset, so no sequence sees another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedBatch {
    /// Input token ids, length T.
    pub inputs: Vec<u32>,
    /// Target id of each position, length T; [`IGNORE_INDEX`] where there is none.
    pub targets: Vec<u32>,
    /// Position of each token in its sequence, length T.
    pub positions: Vec<u32>,
    /// First token of each sequence, then T: one more entry than there are sequences.
    pub offsets: Vec<u32>,
}

/// A [`PackedBatch`] on a device.
#[derive(Clone, Debug)]
pub struct DeviceBatch {
    /// `[1, T]`, u32.
    pub ids: Tensor,
    /// `[1, T]`, u32.
    pub positions: Tensor,
    /// `[N + 1]`, u32.
    pub cu_seqlens: Tensor,
    /// `[T]`, u32.
    pub targets: Tensor,
}

impl PackedBatch {
    /// One sequence, in which each token is the target of the one before it.
    pub fn next_token(tokens: &[u32]) -> Self {
        let mut batch = PackedBatch::default();
        batch.push(tokens, tokens.get(1..).unwrap_or_default());
        batch
    }

    /// Appends a sequence: its tokens and the target of each.
    pub fn push(&mut self, inputs: &[u32], targets: &[u32]) {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        let count = inputs.len().min(targets.len());
        self.inputs.extend_from_slice(&inputs[..count]);
        self.targets.extend_from_slice(&targets[..count]);
        self.positions.extend(0..count as u32);
        self.offsets.push(self.inputs.len() as u32);
    }

    /// The number of tokens T.
    pub fn tokens(&self) -> usize {
        self.inputs.len()
    }

    /// The number of positions that have a target: the weight of this batch in a mean loss.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE_INDEX).count()
    }

    /// Copies the batch to a device.
    ///
    /// # Errors
    /// When the batch is empty or does not fit the device's memory.
    pub fn to_device(&self, device: &Device) -> Result<DeviceBatch> {
        let t = self.inputs.len();
        Ok(DeviceBatch {
            ids: Tensor::from_slice(&self.inputs, [1, t], device)?,
            positions: Tensor::from_slice(&self.positions, [1, t], device)?,
            cu_seqlens: Tensor::from_slice(&self.offsets, [self.offsets.len()], device)?,
            targets: Tensor::from_slice(&self.targets, [t], device)?,
        })
    }
}

impl DeviceBatch {
    /// The model's view of the batch.
    pub fn batch(&self) -> Batch<'_> {
        Batch { ids: &self.ids, positions: &self.positions, cu_seqlens: Some(&self.cu_seqlens) }
    }
}
