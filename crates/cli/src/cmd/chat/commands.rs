//! Lines of input: commands and messages.

/// The commands, each with what it does.
pub(super) const COMMANDS: [(&str, &str); 9] = [
    ("/help", "lists the commands"),
    ("/reset", "clears the conversation"),
    ("/system [TEXT]", "sets or removes the system prompt and clears the conversation"),
    ("/undo", "removes the last message and its answer"),
    ("/retry", "answers the last message again, with another seed"),
    ("/save FILE", "writes the conversation as JSON"),
    ("/load FILE", "reads a conversation, also one of OpenAI's `messages`"),
    ("/tokens", "counts the tokens of the conversation"),
    ("/exit", "ends the chat, as Ctrl-D does"),
];

/// A line of input.
#[derive(Debug, PartialEq)]
pub(super) enum Line<'a> {
    Nothing,
    Exit,
    Help,
    Reset,
    Undo,
    Retry,
    Tokens,
    System(&'a str),
    Save(&'a str),
    Load(&'a str),
    /// A single word in the form of a command that does not exist.
    Unknown(&'a str),
    Message(String),
}

impl<'a> Line<'a> {
    pub(super) fn of(line: &'a str) -> Self {
        let trimmed = line.trim();
        let (word, rest) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
        let lone =
            word.len() > 1 && word.chars().skip(1).all(|letter| letter.is_alphanumeric() || "-_".contains(letter));
        match (word, rest.trim_start()) {
            ("", _) => Line::Nothing,
            ("/exit" | "/quit" | "/bye", "") => Line::Exit,
            ("/help" | "/?", "") => Line::Help,
            ("/reset" | "/clear", "") => Line::Reset,
            ("/undo", "") => Line::Undo,
            ("/retry", "") => Line::Retry,
            ("/tokens", "") => Line::Tokens,
            ("/system", text) => Line::System(text),
            ("/save", file) => Line::Save(file),
            ("/load", file) => Line::Load(file),
            (word, "") if word.starts_with('/') && lone => Line::Unknown(word),
            _ => Line::Message(message(trimmed)),
        }
    }
}

/// Whether a text goes on in the next line: it has an open `"""`, or ends with a backslash.
pub(super) fn goes_on(text: &str) -> bool {
    match text.trim_start().strip_prefix(QUOTES) {
        Some(rest) => !rest.trim_end().ends_with(QUOTES),
        None => text.ends_with('\\'),
    }
}

const QUOTES: &str = "\"\"\"";

/// The message of a text: without the `"""` around it, or the backslashes at the ends of its lines.
fn message(text: &str) -> String {
    match text.strip_prefix(QUOTES) {
        Some(rest) => rest.strip_suffix(QUOTES).unwrap_or(rest).trim_matches('\n').to_owned(),
        None => text.replace("\\\n", "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_command_is_a_command() {
        for (line, is) in [
            (" \t\n", Line::Nothing),
            ("/exit\n", Line::Exit),
            (" /quit ", Line::Exit),
            ("/help", Line::Help),
            ("/reset", Line::Reset),
            ("/system  be nice \n", Line::System("be nice")),
            ("/system\n", Line::System("")),
            ("/systemfoo", Line::Unknown("/systemfoo")),
            ("/no-such", Line::Unknown("/no-such")),
            ("/save my chat.json ", Line::Save("my chat.json")),
            ("/undo", Line::Undo),
        ] {
            assert_eq!(Line::of(line), is, "{line}");
        }
        for line in ["/systemfoo bar", "/exit the program, how?", "/etc/passwd is what?", "/etc/passwd", "/", "// a"] {
            assert_eq!(Line::of(line), Line::Message(line.to_owned()));
        }
        assert_eq!(Line::of(" hello "), Line::Message("hello".to_owned()));
    }

    #[test]
    fn a_message_of_several_lines_is_one_message() {
        for (text, message) in [
            ("\"\"\"one\n  two\n\"\"\"", "one\n  two"),
            ("\"\"\"\none\n/exit\n\"\"\" ", "one\n/exit"),
            ("one\\\ntwo", "one\ntwo"),
            ("def f():\n    return 1\n", "def f():\n    return 1"),
        ] {
            assert!(!goes_on(text), "{text}");
            assert_eq!(Line::of(text), Line::Message(message.to_owned()));
        }
        for text in ["\"\"\"", "\"\"\"one", "\"\"\"one\n\"\"", "one\\", "one\\\ntwo\\"] {
            assert!(goes_on(text), "{text}");
        }
    }
}
