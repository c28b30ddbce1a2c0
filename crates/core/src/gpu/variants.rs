//! The compiled variants of kernels.

use super::Variant;
use crate::{DType, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was compiled so far, by the kernel's address: two kernels of one name are two kernels. A kernel has few variants,
/// which are compared faster than hashed.
pub(super) struct Variants<P>(Mutex<HashMap<usize, Vec<Compiled<P>>>>);

struct Compiled<P> {
    entry: &'static str,
    constants: Vec<(&'static str, u32)>,
    stored: Vec<(&'static str, DType)>,
    pipeline: Arc<P>,
}

impl<P> Compiled<P> {
    fn is(&self, variant: &Variant<'_>) -> bool {
        *variant == Variant { entry: self.entry, constants: &self.constants, stored: &self.stored }
    }
}

impl<P> Default for Variants<P> {
    fn default() -> Self {
        Variants(Mutex::default())
    }
}

impl<P> Variants<P> {
    /// The compiled variant; the first request compiles it.
    ///
    /// # Errors
    /// Those of `compile`.
    pub(super) fn get<K>(
        &self,
        kernel: &'static K,
        variant: Variant<'_>,
        compile: impl FnOnce() -> Result<P>,
    ) -> Result<Arc<P>> {
        let key = std::ptr::from_ref(kernel).addr();
        let find = |variants: &Vec<Compiled<P>>| {
            variants.iter().find(|found| found.is(&variant)).map(|found| found.pipeline.clone())
        };
        if let Some(found) = self.lock().get(&key).and_then(find) {
            return Ok(found);
        }
        // outside the lock: other threads launch meanwhile
        let pipeline = Arc::new(compile()?);
        let mut compiled = self.lock();
        let variants = compiled.entry(key).or_default();
        // another thread may have been faster; its pipeline may be in use as a key already
        if let Some(found) = find(variants) {
            return Ok(found);
        }
        let Variant { entry, constants, stored } = variant;
        let (constants, stored) = (constants.to_vec(), stored.to_vec());
        variants.push(Compiled { entry, constants, stored, pipeline: pipeline.clone() });
        Ok(pipeline)
    }

    /// Every variant.
    pub(super) fn all(&self) -> Vec<Arc<P>> {
        self.lock().values().flatten().map(|compiled| compiled.pipeline.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<usize, Vec<Compiled<P>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
