//! What a model thinks, told apart from what it answers.

/// A piece of generated text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It was thought.
    Thought,
    /// The thought has ended.
    Ended,
    /// It is the answer.
    Answer,
}

/// Cuts text that comes in pieces at the tags around thoughts; the tags themselves are left out.
#[derive(Clone, Debug)]
pub struct Thinking {
    tags: Option<[&'static str; 2]>,
    inside: bool,
    /// What may be the beginning of a tag.
    held: String,
}

impl Thinking {
    /// Of what follows a prompt, which may have begun a thought; without tags all of it is the answer.
    pub fn after(prompt: &str, tags: Option<[&'static str; 2]>) -> Self {
        let inside = tags.is_some_and(|[open, _]| prompt.trim_end().ends_with(open));
        Thinking { tags, inside, held: String::new() }
    }

    /// The parts that the next piece of text completes.
    pub fn push(&mut self, text: &str) -> Vec<(Part, String)> {
        let Some([open, close]) = self.tags else { return vec![(Part::Answer, text.to_owned())] };
        self.held += text;
        let mut parts = Vec::new();
        loop {
            let tag = if self.inside { close } else { open };
            let found = self.held.find(tag);
            let end = found.unwrap_or_else(|| self.held.len() - begun(&self.held, tag));
            let rest = self.held.split_off(end);
            let text = std::mem::replace(&mut self.held, rest);
            if !text.is_empty() {
                parts.push((self.part(), text));
            }
            if found.is_none() {
                return parts;
            }
            self.held.drain(..tag.len());
            if self.inside {
                parts.push((Part::Ended, String::new()));
            }
            self.inside = !self.inside;
        }
    }

    /// What was held back.
    pub fn finish(&mut self) -> Vec<(Part, String)> {
        let text = std::mem::take(&mut self.held);
        if text.is_empty() { vec![] } else { vec![(self.part(), text)] }
    }

    fn part(&self) -> Part {
        if self.inside { Part::Thought } else { Part::Answer }
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
            let mut thinking = Thinking::after("<|im_start|>assistant\n", TAGS);
            let [mut thought, mut answer] = [String::new(), String::new()];
            let mut ended = 0;
            let bytes: Vec<String> =
                text.as_bytes().chunks(size).map(|piece| String::from_utf8(piece.to_vec()).unwrap()).collect();
            let pieces = bytes.iter().flat_map(|piece| thinking.push(piece)).collect::<Vec<_>>();
            for (part, text) in pieces.into_iter().chain(thinking.finish()) {
                match part {
                    Part::Thought => thought += &text,
                    Part::Answer => answer += &text,
                    Part::Ended => ended += 1,
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
        let mut thinking = Thinking::after("assistant\n<think>\n", TAGS);
        assert_eq!(thinking.push("a</think>b").len(), 3);
        let mut plain = Thinking::after("<think>", None);
        assert_eq!(plain.push("<think>a"), [(Part::Answer, "<think>a".to_owned())]);
    }
}
