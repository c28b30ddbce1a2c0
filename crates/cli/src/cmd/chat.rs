use super::generate::{SamplingArgs, explained, report, tokenizer, variables};
use super::{DeviceArg, is_here};
use crate::output::say;
use alluvium::lm::tokenizer::messages::{Ending, Message};
use alluvium::lm::tokenizer::reasoning::{Part, Thinking};
use alluvium::lm::{LanguageModel, Options, Session, Summary, Tokenizer, load};
use anyhow::bail;
use serde_json::{Map, Value};
use std::io::{self, BufRead, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Chat with a model
///
/// Commands: /reset clears the conversation, /system TEXT sets the system prompt, /help lists the commands, /exit or the end
/// of the input ends the chat. Any other line is a message. The cache of the conversation is reused from turn to turn.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json, a chat template and the safetensors files
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Maximum number of tokens in a response
    #[arg(long, short, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    /// System prompt
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system_prompt: Option<String>,
    /// Variables for the chat template, as JSON: {"enable_thinking": false}
    #[arg(long, value_name = "JSON")]
    chat_template_config: Option<String>,
    /// Prompt tokens per forward pass: fewer take less memory, more may be faster [default: chosen for the device]
    #[arg(long, value_name = "N")]
    prefill_step_size: Option<NonZeroUsize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args, out: &mut impl Write) -> anyhow::Result<()> {
    is_here(&args.model)?;
    let device = args.device.open()?;
    let loaded = load(&args.model, &device)?;
    let tokenizer = tokenizer(loaded.tokenizer, &args.model)?;
    if tokenizer.chat_template().is_none() {
        let model = args.model.display();
        bail!("{model} has no chat template; `alluvium generate` continues plain text");
    }
    let mut chat = Chat {
        model: loaded.model.as_ref(),
        folder: &args.model,
        session: Session::new(loaded.model.as_ref())?.reading(args.prefill_step_size),
        at_once: args.prefill_step_size,
        tokenizer: &tokenizer,
        system: args.system_prompt,
        history: Vec::new(),
        variables: variables(args.chat_template_config.as_deref())?,
        options: args.sampling.options(args.max_tokens),
        styled: io::stdout().is_terminal(),
    };
    // a template that fails is reported before the first message
    chat.prompt("hello")?;
    let terminal = io::stdin().is_terminal();
    if terminal {
        say!("{COMMANDS}");
    }
    let mut lines = io::stdin().lock();
    loop {
        if terminal {
            write!(out, ">> ")?;
            out.flush()?;
        }
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let Ok(line) = String::from_utf8(line) else {
            say!("error: this line is not UTF-8; it was left out");
            continue;
        };
        match Line::of(&line) {
            Line::Nothing => {}
            Line::Exit => break,
            Line::Help => say!("{COMMANDS}"),
            Line::Reset => {
                chat.history.clear();
                say!("the conversation is cleared");
            }
            Line::System(text) => chat.set_system_prompt(text),
            Line::Unknown(word) => say!("unknown command {word}; {COMMANDS}"),
            Line::Message(message) => {
                if let Some(summary) = chat.answer(message, out)?.filter(|_| terminal) {
                    report(&summary, device.peak_memory());
                }
            }
        }
    }
    Ok(())
}

const COMMANDS: &str =
    "/reset clears the conversation, /system TEXT sets the system prompt, /help lists the commands, /exit ends";

/// A line of input.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Nothing,
    Exit,
    Help,
    Reset,
    System(&'a str),
    /// A single word in the form of a command that does not exist.
    Unknown(&'a str),
    Message(&'a str),
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let lone =
            word.len() > 1 && word.chars().skip(1).all(|letter| letter.is_alphanumeric() || "-_".contains(letter));
        match (word, rest.trim_start()) {
            ("", _) => Line::Nothing,
            ("/exit" | "/quit", "") => Line::Exit,
            ("/help", "") => Line::Help,
            ("/reset", "") => Line::Reset,
            ("/system", text) => Line::System(text),
            (word, "") if word.starts_with('/') && lone => Line::Unknown(word),
            _ => Line::Message(line),
        }
    }
}

struct Chat<'a> {
    model: &'a dyn LanguageModel,
    folder: &'a Path,
    session: Session<'a>,
    at_once: Option<NonZeroUsize>,
    tokenizer: &'a Tokenizer,
    system: Option<String>,
    history: Vec<Message>,
    variables: Map<String, Value>,
    options: Options,
    /// Whether the output is a terminal, where reasoning is dimmed.
    styled: bool,
}

impl Chat<'_> {
    fn prompt(&self, message: &str) -> anyhow::Result<String> {
        let system = self.system.as_deref().map(|text| Message::new("system", text));
        let messages: Vec<Message> =
            system.into_iter().chain(self.history.iter().cloned()).chain([Message::new("user", message)]).collect();
        Ok(self.tokenizer.chat(&messages, Ending::Answer, &self.variables)?)
    }

    /// Sets the system prompt and clears the conversation, unless the template refuses the prompt.
    fn set_system_prompt(&mut self, text: &str) {
        let before = std::mem::replace(&mut self.system, Some(text.to_owned()).filter(|text| !text.is_empty()));
        let history = std::mem::take(&mut self.history);
        match self.prompt("hello") {
            Ok(_) if text.is_empty() => say!("no system prompt; the conversation is cleared"),
            Ok(_) => say!("the system prompt is set; the conversation is cleared"),
            Err(error) => {
                (self.system, self.history) = (before, history);
                say!("error: {error:#}; the system prompt is unchanged");
            }
        }
    }

    /// Generates and writes a response. A message that cannot be answered is reported, left out of the conversation, and
    /// gives `None`.
    ///
    /// # Errors
    /// When the output cannot be written.
    fn answer(&mut self, message: &str, out: &mut impl Write) -> anyhow::Result<Option<Summary>> {
        match self.answered(message, out) {
            Err(error) if !error.is::<io::Error>() => {
                let error = explained(error, &self.session, self.folder);
                say!("error: {error:#}; the message was left out");
                // the cache of a session that failed is not known to be consistent
                self.session = Session::new(self.model)?.reading(self.at_once);
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    fn answered(&mut self, message: &str, out: &mut impl Write) -> anyhow::Result<Summary> {
        let prompt = self.prompt(message)?;
        let ids = self.tokenizer.encode_plain(&prompt)?;
        let mut thinking = Thinking::after(&prompt, self.tokenizer.thinking());
        let (mut said, mut failed) = (String::new(), None);
        let styled = self.styled;
        let mut show = |parts: Vec<(Part, String)>| {
            for (part, text) in parts {
                let result = match part {
                    Part::Thought if styled => write!(out, "\x1b[2m{text}\x1b[0m"),
                    Part::Thought => write!(out, "{text}"),
                    Part::Ended => write!(out, "\n---\n"),
                    Part::Answer => {
                        said += &text;
                        write!(out, "{text}")
                    }
                };
                if let Err(error) = result.and_then(|()| out.flush()) {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        };
        let summary =
            self.session.generate(self.tokenizer, &ids, &self.options, &mut |text| Ok(show(thinking.push(text))))?;
        let _ = show(thinking.finish());
        failed.map_or(Ok(()), Err)?;
        writeln!(out)?;
        self.history.push(Message::new("user", message));
        self.history.push(Message::new("assistant", said.trim()));
        Ok(summary)
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
            ("/systemfoo bar", Line::Message("/systemfoo bar")),
            ("/exit the program, how?", Line::Message("/exit the program, how?")),
            ("/etc/passwd is what?", Line::Message("/etc/passwd is what?")),
            ("/etc/passwd", Line::Message("/etc/passwd")),
            ("/", Line::Message("/")),
            ("// a comment", Line::Message("// a comment")),
            (" hello ", Line::Message("hello")),
        ] {
            assert_eq!(Line::of(line), is, "{line}");
        }
    }
}
