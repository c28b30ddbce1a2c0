//! Codes on their way into words.

/// Bits that are put one after the other into words, the lowest first.
pub(crate) struct Stream<'a> {
    words: std::slice::IterMut<'a, u32>,
    held: u64,
    count: u32,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(words: &'a mut [u32]) -> Self {
        Stream { words: words.iter_mut(), held: 0, count: 0 }
    }

    #[inline(always)]
    pub(crate) fn push(&mut self, code: u32, bits: u32) {
        self.held |= u64::from(code) << self.count;
        self.count += bits;
        if self.count >= 32 {
            if let Some(word) = self.words.next() {
                *word = self.held as u32;
            }
            self.held >>= 32;
            self.count -= 32;
        }
    }
}
