//! Token ids that come one by one, to text.

use super::Tokenizer;
use alluvium_core::Result;

/// Decodes ids one by one and holds back bytes that are not a whole character yet.
///
/// New text is what decoding adds to the ids of the piece before: a decoder may treat the first id of a text
/// differently, and byte fallback writes a run of bytes that is not whole as U+FFFD for each of them.
#[derive(Debug)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// The ids of the piece before, then those that wait.
    window: Vec<u32>,
    /// How many ids belong to the piece before.
    before: usize,
    /// Bytes of text of the piece before.
    sent: usize,
}

/// Ids that may wait for a whole character. No character has more than 4 bytes, but a run of byte tokens is decoded as
/// one; ids that are not text at all would wait for ever.
const WAITING: usize = 32;

impl<'a> Detokenizer<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Detokenizer { tokenizer, window: vec![], before: 0, sent: 0 }
    }

    /// The text that the next id completes. It is empty inside a character.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window)?;
        let is_whole = text.len() > self.sent && !text.ends_with('\u{fffd}');
        if !is_whole && self.window.len() - self.before < WAITING {
            return Ok(String::new());
        }
        let new = text.get(self.sent..).unwrap_or_default().to_owned();
        self.window.drain(..self.before);
        self.before = self.window.len();
        self.sent = self.tokenizer.decode(&self.window)?.len();
        Ok(new)
    }

    /// The text that still waits, with U+FFFD for an incomplete character.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn finish(&mut self) -> Result<String> {
        Ok(self.tokenizer.decode(&self.window)?.get(self.sent..).unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "The delta rule writes a correction: don't forget. Café 日本 🙂 1024\n\n  def f(x):\r\n";

    fn trained() -> Tokenizer {
        Tokenizer::train([TEXT, TEXT, TEXT].into_iter(), 300, &|_| ()).unwrap()
    }

    #[test]
    fn a_stream_gives_whole_characters_and_in_sum_the_text() {
        let tokenizer = trained();
        let text = "🙂🙂 日本語 \u{1f980}\u{1f980} and more text, long enough that the window starts again";
        let mut stream = tokenizer.detokenizer();
        let mut out = String::new();
        for id in tokenizer.encode(text).unwrap() {
            let piece = stream.push(id).unwrap();
            assert!(!piece.contains('\u{fffd}'), "{piece:?}");
            out += &piece;
        }
        assert_eq!(out + &stream.finish().unwrap(), text);
    }

    #[test]
    fn a_cut_character_is_said_at_the_end() {
        let tokenizer = trained();
        let ids = tokenizer.encode("\u{1f980}").unwrap();
        let mut stream = tokenizer.detokenizer();
        assert_eq!(stream.push(ids[0]).unwrap(), "");
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }
}
