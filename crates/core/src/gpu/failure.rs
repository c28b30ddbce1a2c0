//! What went wrong behind the queue.

use super::failed;
use crate::Result;
use std::sync::{Arc, Mutex, PoisonError};

/// The first failure that a driver reported outside of the call that caused it. Cheap to clone: a handle.
#[derive(Clone, Debug, Default)]
pub(super) struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    pub(super) fn set(&self, why: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    /// # Errors
    /// When there was a failure.
    pub(super) fn check(&self, device: &str) -> Result<()> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(why) => Err(failed(device, format!("{why}; files that were written are intact: start again"))),
            None => Ok(()),
        }
    }
}
