//! Caches of prompts' beginnings, within a number of bytes.

use crate::cache::Cache;
use crate::generate::session::MIN_PREFILL_TAIL;

/// Caches by the tokens that they have read. The least recently used one is dropped first.
pub(super) struct PrefixCache {
    /// Most recently used last.
    entries: Vec<Entry>,
    max_bytes: usize,
}

struct Entry {
    tokens: Vec<u32>,
    cache: Cache,
    bytes: usize,
}

impl PrefixCache {
    pub(super) fn new(max_bytes: usize) -> Self {
        PrefixCache { entries: Vec::new(), max_bytes }
    }

    /// The bytes of all entries.
    pub(super) fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// The cache of the longest beginning of a prompt, and the number of its tokens. It leaves as many tokens of the
    /// prompt as are read together: the hidden state of the last one is needed.
    pub(super) fn find(&mut self, prompt: &[u32]) -> Option<(Cache, usize)> {
        let is_beginning = |tokens: &[u32]| {
            prompt.len() - tokens.len().min(prompt.len()) > MIN_PREFILL_TAIL && prompt.starts_with(tokens)
        };
        let candidates = self.entries.iter().enumerate().filter(|(_, entry)| is_beginning(&entry.tokens));
        let (at, _) = candidates.max_by_key(|(_, entry)| entry.tokens.len())?;
        let entry = self.entries.remove(at);
        let found = (entry.cache.clone(), entry.tokens.len());
        self.entries.push(entry);
        Some(found)
    }

    /// Keeps the cache of these tokens. One that is larger than all bytes is not kept.
    pub(super) fn insert(&mut self, tokens: &[u32], cache: &Cache) {
        let bytes = cache.bytes();
        if bytes > self.max_bytes {
            return;
        }
        self.entries.retain(|entry| entry.tokens != tokens);
        let mut all = self.bytes() + bytes;
        while all > self.max_bytes {
            all -= self.entries.remove(0).bytes;
        }
        self.entries.push(Entry { tokens: tokens.to_vec(), cache: cache.clone(), bytes });
    }
}
