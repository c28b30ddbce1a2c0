//! Token ids that come one by one, to text.

use super::Tokenizer;
use alluvium_core::Result;

/// Decodes ids one by one. It holds back bytes that are not a whole character yet; all pieces together are what
/// decoding all ids at once gives.
///
/// New text is what decoding adds to the ids of the piece before: a decoder may treat the first id of a text
/// differently. Byte fallback decodes a run of byte tokens as one, so the text of a run is held back until the run
/// ends.
#[derive(Debug)]
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// The ids of the piece before, then those that wait.
    window: Vec<u32>,
    /// The number of ids of the piece before.
    before: usize,
    /// Bytes of text of the piece before.
    sent: usize,
}

/// Ids that may wait for a whole character. No character has more than 4 bytes; ids that are not text at all would wait
/// for ever.
const WAITING: usize = 32;
/// Byte tokens of one run that may wait for its end.
const RUN: usize = 128;

impl<'a> Detokenizer<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Detokenizer { tokenizer, window: vec![], before: 0, sent: 0 }
    }

    /// The text that the next id completes. It is empty inside a character.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.tokenizer.left_out.contains(&id) {
            return Ok(String::new());
        }
        self.window.push(id);
        let waiting = self.window.len() - self.before;
        if self.tokenizer.is_byte(id) && waiting < RUN {
            return Ok(String::new());
        }
        let text = self.tokenizer.decode(&self.window)?;
        let is_whole = text.len() > self.sent && !text.ends_with('\u{fffd}');
        if !is_whole && waiting < WAITING {
            return Ok(String::new());
        }
        if text.len() <= self.sent {
            // ids without text: the piece before still says how the next one begins
            self.window.truncate(self.before);
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

    /// A tokenizer of the Llama kind: metaspace, byte fallback, every byte as a token.
    fn metaspace() -> Tokenizer {
        let mut vocab = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
        vocab.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
        vocab.extend(["\u{2581}", "a", "b", "\u{2581}a", "\u{2581}b", "<think>", "</think>"].map(str::to_owned));
        let vocab: serde_json::Map<String, serde_json::Value> =
            vocab.into_iter().enumerate().map(|(id, token)| (token, id.into())).collect();
        let special = |token: &str| {
            serde_json::json!({"id": vocab[token], "content": token, "single_word": false, "lstrip": false,
                               "rstrip": false, "normalized": false, "special": true})
        };
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": (["<unk>", "<s>", "</s>", "<think>", "</think>"].map(special)),
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "\u{2581}"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
            ]},
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                      "merges": []},
        });
        Tokenizer::from_json(&json.to_string()).unwrap()
    }

    #[test]
    fn pieces_are_together_what_decoding_at_once_gives_for_every_kind_of_tokenizer() {
        let mut random = alluvium_core::rng::Rng::new(1, "pieces");
        for (kind, tokenizer) in [("byte level", trained()), ("metaspace with byte fallback", metaspace())] {
            let words = tokenizer.vocab_size() as f64;
            for run in 0..3_000 {
                let length = 1 + run % 40;
                let mut ids: Vec<u32> = (0..length).map(|_| random.between(0.0, words) as u32).collect();
                if run % 3 == 0 {
                    let text: String = (0..length)
                        .map(|_| ['a', ' ', 'é', 'ж', '日', '🙂'][random.between(0.0, 6.0) as usize])
                        .collect();
                    ids = tokenizer.encode_without_special_tokens(&text).unwrap();
                }
                let mut stream = tokenizer.detokenizer();
                let mut out: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
                out += &stream.finish().unwrap();
                assert_eq!(out, tokenizer.decode(&ids).unwrap(), "{kind}: {ids:?}");
            }
        }
    }

    #[test]
    fn a_character_of_byte_tokens_comes_when_its_run_ends() {
        let tokenizer = metaspace();
        let mut stream = tokenizer.detokenizer();
        let pieces: Vec<String> = tokenizer
            .encode_without_special_tokens("éж b")
            .unwrap()
            .into_iter()
            .map(|id| stream.push(id).unwrap())
            .collect();
        assert_eq!(pieces.concat() + &stream.finish().unwrap(), "éж b");
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
    }

    #[test]
    fn tags_of_thoughts_are_in_the_text_also_where_they_are_special_tokens() {
        let tokenizer = metaspace();
        let ids = tokenizer.encode_without_special_tokens("<think>a</think> b</s>").unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), "<think> a</think>  b");
    }
}
