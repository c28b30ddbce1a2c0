//! Small tables that launches need again and again: each is sent once and kept by its contents.

use super::Gpu;
use super::memory::Bytes;
use crate::{DType, Result, Tensor};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The length of the longest table that is kept.
const LONGEST: usize = 4096;
/// The most tables that are kept; together they have at most a megabyte.
const COUNT: usize = 64;

/// The tables that were sent, by their contents.
#[derive(Debug, Default)]
pub(super) struct Tables(Mutex<HashMap<Vec<u32>, Arc<Bytes>>>);

impl Gpu {
    /// A small u32 table that later launches are likely to need again, such as a rotation's frequencies: it is sent
    /// once and kept by its contents. Its memory stays in use.
    ///
    /// # Errors
    /// When the memory, or its limit, is used up.
    pub fn table(&self, words: &[u32]) -> Result<Tensor> {
        self.check_alive()?;
        let shape = [words.len()].into();
        if words.len() > LONGEST {
            return self.upload(bytemuck::cast_slice(words), shape, DType::U32);
        }
        let mut tables = self.tables().0.lock().unwrap_or_else(PoisonError::into_inner);
        // a launch that wrote to a table invalidated its mirror
        if let Some(bytes) = tables.get(words).filter(|bytes| bytes.mirror().is_some()) {
            return Ok(self.tensor(bytes.clone(), shape, DType::U32));
        }
        if tables.len() >= COUNT {
            tables.clear();
        }
        let bytes = self.uploaded(bytemuck::cast_slice(words), DType::U32)?;
        tables.insert(words.to_vec(), bytes.clone());
        Ok(self.tensor(bytes, shape, DType::U32))
    }
}
