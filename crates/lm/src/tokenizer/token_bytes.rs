//! The bytes that each token stands for.

use super::Tokenizer;

/// What a token adds to a text.
pub(crate) enum TokenBytes {
    /// These bytes.
    Text(Vec<u8>),
    /// Nothing: a special token of this name.
    Special(String),
    /// The id has no token.
    None,
}

impl Tokenizer {
    /// The bytes of each id below [`Tokenizer::vocab_size`].
    pub(crate) fn token_bytes(&self) -> Vec<TokenBytes> {
        let added = self.inner.get_added_tokens_decoder();
        let is_byte_level = self.json.contains("ByteLevel");
        let bytes = byte_level();
        let one = |id: u32| {
            if let Some(token) = added.get(&id) {
                return match self.left_out.contains(&id) {
                    true => TokenBytes::Special(token.content.clone()),
                    false => TokenBytes::Text(token.content.clone().into_bytes()),
                };
            }
            let Some(token) = self.inner.id_to_token(id) else { return TokenBytes::None };
            TokenBytes::Text(match () {
                () if self.is_byte(id) => {
                    vec![u8::from_str_radix(token.trim_start_matches("<0x").trim_end_matches('>'), 16).unwrap_or(b'?')]
                }
                () if is_byte_level => {
                    let byte = |c: char| bytes.iter().position(|&shown| shown == c).map(|byte| byte as u8);
                    token.chars().filter_map(byte).collect()
                }
                () => token.replace('▁', " ").into_bytes(),
            })
        };
        (0..self.vocab_size() as u32).map(one).collect()
    }
}

/// The character that byte-level BPE writes for each byte.
fn byte_level() -> [char; 256] {
    let mut next = 256;
    std::array::from_fn(|byte| {
        if matches!(byte, 33..=126 | 161..=172 | 174..=255) {
            return char::from(byte as u8);
        }
        next += 1;
        char::from_u32(next - 1).unwrap_or('?')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_the_tokens_are_those_of_the_text() {
        let text = "Grüße, \u{1f600}\n\t<b> naïve   \u{0}";
        let tokenizer = Tokenizer::train([text].into_iter(), 280, &|_| ()).unwrap();
        let bytes = tokenizer.token_bytes();
        let joined: Vec<u8> = tokenizer
            .encode(text)
            .unwrap()
            .into_iter()
            .flat_map(|id| match &bytes[id as usize] {
                TokenBytes::Text(bytes) => bytes.clone(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(String::from_utf8(joined).unwrap(), text);
        let end = tokenizer.token_id(crate::tokenizer::END_OF_TEXT).unwrap();
        assert!(matches!(&bytes[end as usize], TokenBytes::Special(name) if name == "<|endoftext|>"));
    }
}
