//! Snapshots, which restore an earlier state of a cache.

use super::{Cache, DeltaCache, LayerCache};
use alluvium_core::{Error, Result};

/// The states of the linear layers, which cannot be trimmed. The keys and values of attention stay in the cache and are
/// truncated on a restore.
#[derive(Clone, Debug)]
pub struct Snapshot {
    layers: Vec<Option<DeltaCache>>,
    offset: usize,
}

impl Cache {
    /// Takes a snapshot for [`Cache::restore`]. It holds a copy of the linear layers' states once the cache advances.
    pub fn snapshot(&self) -> Snapshot {
        let delta = |layer: &LayerCache| match layer {
            LayerCache::Delta(cache) => Some(cache.clone()),
            LayerCache::Attention(_) => None,
        };
        Snapshot { layers: self.layers.iter().map(delta).collect(), offset: self.offset() }
    }

    /// Forgets what a single sequence has read since the snapshot of this cache.
    ///
    /// # Errors
    /// When the snapshot is of another cache, or the cache has more than one sequence.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        if self.offsets.len() != 1 || snapshot.offset > self.offset() || snapshot.layers.len() != self.layers.len() {
            return Err(Error::value("cache", "the snapshot is none of this cache's past"));
        }
        for (layer, before) in self.layers.iter_mut().zip(&snapshot.layers) {
            match (layer, before) {
                (LayerCache::Delta(cache), Some(before)) => *cache = before.clone(),
                (LayerCache::Attention(cache), None) => {
                    cache.sequences.iter_mut().for_each(|sequence| sequence.len = snapshot.offset);
                }
                _ => return Err(Error::value("cache", "the snapshot is of another model")),
            }
        }
        self.offsets = vec![snapshot.offset];
        Ok(())
    }
}

impl Snapshot {
    /// Tokens that had been read.
    pub fn offset(&self) -> usize {
        self.offset
    }
}
