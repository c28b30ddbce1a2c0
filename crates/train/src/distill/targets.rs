//! The largest logits of a teacher, kept on disk.

use super::TeacherLogits;
use crate::data::PackedBatch;
use alluvium_core::{DType, Device, Error, Result, Tensor};
use alluvium_lm::formats::safetensors;
use alluvium_ops::cast;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// The largest logits of each token, less the largest of all, and their ids in rising order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopLogits {
    /// The number of logits of a token.
    pub count: usize,
    /// Token ids, `count` for each token of the batch.
    pub ids: Vec<u32>,
    /// The logits of these ids.
    pub logits: Vec<f32>,
}

/// Rows of logits that exist at once.
const ROWS: usize = 64;

/// A logit to which the softmax gives probability 0: finite, so that no difference of two is NaN.
const NEVER: f32 = -1e30;

impl TopLogits {
    /// The `count` largest logits of each token, or all where there are fewer.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn of(teacher: &TeacherLogits, count: usize) -> Result<Self> {
        let TeacherLogits::All { hidden, head } = teacher else {
            return Err(Error::value("distill", "the largest logits are taken of all of them"));
        };
        let (rows, vocab_size) = (hidden.shape()[0], head.shape()[0]);
        let mut top = TopLogits { count: count.min(vocab_size), ids: Vec::new(), logits: Vec::new() };
        for first in (0..rows).step_by(ROWS) {
            let logits = head.linear(&hidden.rows(first, ROWS.min(rows - first))?)?.to_floats()?;
            let of_rows: Vec<Vec<u32>> =
                logits.par_chunks_exact(vocab_size).map(|row| largest(row, top.count)).collect();
            for (row, ids) in logits.chunks_exact(vocab_size).zip(of_rows) {
                let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                top.logits.extend(ids.iter().map(|&id| row[id as usize] - most));
                top.ids.extend(ids);
            }
        }
        Ok(top)
    }

    /// The number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len() / self.count.max(1)
    }

    /// Those of some tokens.
    pub(super) fn rows(&self, first: usize, count: usize) -> Self {
        let span = first * self.count..(first + count) * self.count;
        TopLogits { count: self.count, ids: self.ids[span.clone()].to_vec(), logits: self.logits[span].to_vec() }
    }

    /// Two matrices `[N, V]`: 0 at the ids and [`NEVER`] elsewhere, to add to a student's logits, and the teacher's
    /// logits.
    pub(super) fn spread(&self, vocab_size: usize, device: &Device) -> Result<[Tensor; 2]> {
        let shape = [self.tokens(), vocab_size];
        let mut both = [vec![NEVER; shape[0] * shape[1]], vec![NEVER; shape[0] * shape[1]]];
        for (at, (&id, &logit)) in self.ids.iter().zip(&self.logits).enumerate() {
            let id = id as usize;
            if id >= vocab_size {
                let why = format!("a target is token {id}, the student has {vocab_size}: expected one vocabulary");
                return Err(Error::value("distill", why));
            }
            let at = at / self.count * vocab_size + id;
            (both[0][at], both[1][at]) = (0.0, logit);
        }
        let [hidden, teacher] = both;
        Ok([Tensor::from_slice(&hidden, shape, device)?, Tensor::from_slice(&teacher, shape, device)?])
    }
}

/// The ids of the largest logits, in rising order.
fn largest(row: &[f32], count: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    if count < ids.len() {
        // of equal logits the lower id comes first, so the choice does not depend on the algorithm
        let order = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
        ids.sort_unstable();
    }
    ids
}

/// A folder of targets: `train/0000000000.safetensors` has `logits` `[1, T, K]` (f16) and `indices` `[1, T, K]` (u32)
/// of the first batch. Names are those of mlx-lm; its batches are padded and in another order, so its files are
/// refused.
#[derive(Clone, Debug)]
pub struct TargetFolder {
    folder: PathBuf,
}

/// The metadata key of the hash of a batch.
const BATCH: &str = "alluvium_batch";

impl TargetFolder {
    /// The targets in a folder, which need not exist.
    pub fn new(folder: &Path) -> Self {
        TargetFolder { folder: folder.to_owned() }
    }

    fn file(&self, split: &str, index: usize) -> PathBuf {
        self.folder.join(split).join(format!("{index:010}.safetensors"))
    }

    /// Whether there are targets for a number of batches.
    pub fn has(&self, split: &str, batches: usize) -> bool {
        (0..batches).all(|index| self.file(split, index).exists())
    }

    /// Writes the targets of a batch unless they are there.
    ///
    /// # Errors
    /// When they cannot be made or written, or the file is one of another batch.
    pub fn write(
        &self,
        (split, index): (&str, usize),
        batch: &PackedBatch,
        make: impl FnOnce() -> Result<TopLogits>,
    ) -> Result<()> {
        let path = self.file(split, index);
        if path.exists() {
            return self.read((split, index), batch).map(|_| ());
        }
        let folder = self.folder.join(split);
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create"))?;
        let top = make()?;
        let (shape, device) = ([1, top.tokens(), top.count], Device::cpu());
        let logits = cast(&Tensor::from_slice(&top.logits, shape, &device)?, DType::F16)?;
        let indices = Tensor::from_slice(&top.ids, shape, &device)?;
        let tensors = [("indices".to_owned(), &indices), ("logits".to_owned(), &logits)];
        safetensors::write(path, &tensors, &[(BATCH.to_owned(), hash(batch))])
    }

    /// Reads the targets of a batch.
    ///
    /// # Errors
    /// When the file is missing, is that of another batch, or does not hold logits for its tokens.
    pub fn read(&self, (split, index): (&str, usize), batch: &PackedBatch) -> Result<TopLogits> {
        let path = self.file(split, index);
        let wrong = |why: String| Error::file(&path, why);
        let file = safetensors::read(&path)?;
        if file.metadata().get(BATCH) != Some(&hash(batch)) {
            let why = "the targets are those of other batches; give the same data, seed, --batch-size and \
                       --max-seq-length, or another --target-dir";
            return Err(wrong(why.to_owned()));
        }
        let device = Device::cpu();
        let (logits, indices) = (file.tensor("logits", &device)?, file.tensor("indices", &device)?);
        let count = indices.shape().last();
        let fits = logits.shape() == indices.shape() && indices.elements() == batch.tokens() * count && count > 0;
        if !fits || !logits.dtype().is_float() || indices.dtype() != DType::U32 {
            let why = format!("logits {} and indices {} came, expected [1, T, K]", logits.shape(), indices.shape());
            return Err(wrong(format!("{why} with T = {}", batch.tokens())));
        }
        let top = TopLogits { count, ids: indices.to_vec()?, logits: logits.to_floats()? };
        match top.logits.iter().find(|logit| !logit.is_finite()) {
            Some(logit) => Err(wrong(format!("a logit is {logit}, expected finite ones"))),
            None => Ok(top),
        }
    }
}

/// A hash of the tokens of a batch and of where its samples begin.
fn hash(batch: &PackedBatch) -> String {
    let step = |hash: u64, x: &u32| (hash ^ u64::from(*x)).wrapping_mul(0x0100_0000_01b3);
    let hash = batch.inputs.iter().chain(&batch.offsets).fold(0xcbf2_9ce4_8422_2325, step);
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> PackedBatch {
        let mut batch = PackedBatch::default();
        batch.push(&[1, 2, 3], &[2, 3, 4]);
        batch
    }

    fn top() -> TopLogits {
        TopLogits { count: 2, ids: vec![0, 3, 1, 2, 0, 1], logits: vec![0.0, -1.5, -0.25, 0.0, 0.0, -8.0] }
    }

    #[test]
    fn the_largest_logits_are_those_of_the_lowest_ids_where_some_are_equal() {
        assert_eq!(largest(&[1.0, 5.0, 1.0, 5.0, f32::NEG_INFINITY], 3), [0, 1, 3]);
        assert_eq!(largest(&[1.0, 2.0], 9), [0, 1]);
    }

    #[test]
    fn targets_are_read_as_written_and_those_of_other_batches_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let targets = TargetFolder::new(folder.path());
        assert!(!targets.has("train", 1));
        targets.write(("train", 0), &batch(), || Ok(top())).unwrap();
        assert!(targets.has("train", 1) && !targets.has("train", 2) && !targets.has("valid", 1));
        assert_eq!(targets.read(("train", 0), &batch()).unwrap(), top());
        // those that are there are not made again
        targets.write(("train", 0), &batch(), || Err(Error::value("test", "made again"))).unwrap();
        let mut other = batch();
        other.inputs[1] = 7;
        let error = targets.read(("train", 0), &other).unwrap_err().to_string();
        assert!(error.contains("the targets are those of other batches"), "{error}");
        let mut cut = batch();
        cut.offsets = vec![0, 1, 3];
        assert!(targets.read(("train", 0), &cut).is_err());
    }

    #[test]
    fn ids_outside_of_the_vocabulary_are_refused() {
        let error = top().spread(3, &Device::cpu()).unwrap_err().to_string();
        assert!(error.contains("a target is token 3, the student has 3"), "{error}");
    }
}
