//! Separates the reasoning of a model from its answer.

/// A piece of generated text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Reasoning.
    Reasoning,
    /// The end of the reasoning.
    ReasoningEnd,
    /// The answer.
    Answer,
}

/// The position of a text relative to its reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Only white space so far: reasoning may begin.
    Beginning,
    /// Inside the reasoning.
    Reasoning,
    /// After it, or in an answer without one.
    Answer,
}

/// Splits streamed text at the tags around its reasoning and drops the tags. Only text at the beginning is reasoning:
/// an answer may name the tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasoningParser {
    tags: Option<[&'static str; 2]>,
    place: Place,
    /// Text that may be the beginning of a tag.
    held: String,
}

impl ReasoningParser {
    /// Splits the text that follows a prompt, which may have begun or ended the reasoning. Without tags all text is
    /// answer.
    pub fn after(prompt: &str, tags: Option<[&'static str; 2]>) -> Self {
        let prompt = prompt.trim_end();
        let place = match tags {
            Some([open, _]) if prompt.ends_with(open) => Place::Reasoning,
            Some([_, close]) if prompt.ends_with(close) => Place::Answer,
            Some(_) => Place::Beginning,
            None => Place::Answer,
        };
        ReasoningParser { tags, place, held: String::new() }
    }

    /// The parts that the next piece of text completes.
    pub fn push(&mut self, text: &str) -> Vec<(Part, String)> {
        let Some([open, close]) = self.tags else { return vec![(Part::Answer, text.to_owned())] };
        self.held += text;
        let mut parts = Vec::new();
        if self.place == Place::Beginning {
            let begun = self.held.trim_start();
            if let Some(rest) = begun.strip_prefix(open) {
                self.held = rest.to_owned();
                self.place = Place::Reasoning;
            } else if open.starts_with(begun) {
                // white space, and perhaps a part of the tag
                return parts;
            } else {
                self.place = Place::Answer;
            }
        }
        if self.place == Place::Reasoning {
            let found = self.held.find(close);
            let end = found.unwrap_or_else(|| self.held.len() - begun(&self.held, close));
            let rest = self.held.split_off(end);
            let thought = std::mem::replace(&mut self.held, rest);
            if !thought.is_empty() {
                parts.push((Part::Reasoning, thought));
            }
            if found.is_none() {
                return parts;
            }
            self.held.drain(..close.len());
            self.place = Place::Answer;
            parts.push((Part::ReasoningEnd, String::new()));
        }
        if !self.held.is_empty() {
            parts.push((Part::Answer, std::mem::take(&mut self.held)));
        }
        parts
    }

    /// Whether the text so far ends inside the reasoning.
    pub fn is_thinking(&self) -> bool {
        self.place == Place::Reasoning
    }

    /// The tag that ends the reasoning.
    pub(crate) fn closing_tag(&self) -> Option<&'static str> {
        self.tags.map(|[_, close]| close)
    }

    /// The text that was held back.
    pub fn finish(&mut self) -> Vec<(Part, String)> {
        let part = if self.place == Place::Reasoning { Part::Reasoning } else { Part::Answer };
        let text = std::mem::take(&mut self.held);
        if text.is_empty() { vec![] } else { vec![(part, text)] }
    }
}

/// The most bytes at the end of a text that begin a tag.
fn begun(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&n| tag.is_char_boundary(n) && text.ends_with(&tag[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAGS: Option<[&str; 2]> = Some(["<think>", "</think>"]);

    #[test]
    fn thoughts_are_told_apart_wherever_the_pieces_are_cut() {
        let text = "<think>so < it\nis</think>\n\nYes <b>.";
        for size in 1..text.len() {
            let mut thinking = ReasoningParser::after("<|im_start|>assistant\n", TAGS);
            let [mut thought, mut answer] = [String::new(), String::new()];
            let mut ended = 0;
            let bytes: Vec<String> =
                text.as_bytes().chunks(size).map(|piece| String::from_utf8(piece.to_vec()).unwrap()).collect();
            let pieces = bytes.iter().flat_map(|piece| thinking.push(piece)).collect::<Vec<_>>();
            for (part, text) in pieces.into_iter().chain(thinking.finish()) {
                match part {
                    Part::Reasoning => thought += &text,
                    Part::Answer => answer += &text,
                    Part::ReasoningEnd => ended += 1,
                }
            }
            assert_eq!(
                (thought.as_str(), answer.as_str(), ended),
                ("so < it\nis", "\n\nYes <b>.", 1),
                "pieces of {size}"
            );
        }
    }

    #[test]
    fn a_prompt_may_begin_the_thought_and_a_model_may_have_none() {
        let mut thinking = ReasoningParser::after("assistant\n<think>\n", TAGS);
        assert_eq!(thinking.push("a</think>b").len(), 3);
        let mut plain = ReasoningParser::after("<think>", None);
        assert_eq!(plain.push("<think>a"), [(Part::Answer, "<think>a".to_owned())]);
    }

    #[test]
    fn an_answer_may_name_the_tags_and_a_prompt_may_end_the_thought() {
        let all = |prompt: &str, text: &str| {
            let mut thinking = ReasoningParser::after(prompt, TAGS);
            let parts = thinking.push(text);
            parts.into_iter().chain(thinking.finish()).collect::<Vec<_>>()
        };
        let answer = |text: &str| vec![(Part::Answer, text.to_owned())];
        assert_eq!(all("<think>\n\n</think>\n\n", "a<think>b"), answer("a<think>b"));
        assert_eq!(all("<think>\n\n</think>\n\n", "<think>b"), answer("<think>b"));
        assert_eq!(all("assistant\n", "the <think> tag"), answer("the <think> tag"));
        let after = all("assistant\n<think>", "so</think>the <think> tag</think>");
        assert_eq!(after[2..], answer("the <think> tag</think>"));
        assert_eq!(all("assistant\n", "\n<thi"), answer("\n<thi"));
        assert_eq!(all("assistant\n", "\n<think>so"), [(Part::Reasoning, "so".to_owned())]);
    }
}
