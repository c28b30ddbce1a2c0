use super::generate::{SamplingArgs, as_json, report};
use super::prompt::{SessionArgs, TemplateArgs, tokenizer};
use super::{DeviceArg, is_here};
use crate::output::say;
use alluvium::lm::tokenizer::reasoning::{Part, ReasoningParser};
use alluvium::lm::{
    Cache, Conversation, GenerateOptions, Generation, LanguageModel, Message, Session, Tokenizer, load,
};
use anyhow::{Context, bail};
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

/// Chat with a model
///
/// Commands: /reset clears the conversation, /system TEXT sets the system prompt, /help lists the commands, /exit or
/// the end of the input ends the chat. Any other line is a message. The cache of the conversation is reused from turn
/// to turn.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json, a chat template and the safetensors files
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Maximum number of tokens in a response
    #[arg(long, short, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    session: SessionArgs,
    /// Write each response as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    is_here(&args.model)?;
    if args.template.ignore_chat_template {
        bail!("--ignore-chat-template: a chat needs its template; `alluvium generate` continues plain text");
    }
    args.template.check_cache(args.session.prompt_cache_file.as_deref())?;
    let device = args.device.open()?;
    let loaded = load(&args.model, &device)?;
    let tokenizer = tokenizer(loaded.tokenizer, &args.model)?;
    if tokenizer.chat_template().is_none() {
        let model = args.model.display();
        bail!("{model} has no chat template; `alluvium generate` continues plain text");
    }
    let cache = args.session.cache(loaded.model.as_ref())?;
    let mut chat = Chat {
        args,
        model: loaded.model.as_ref(),
        session: args.session.session(loaded.model.as_ref(), cache.clone())?,
        cache,
        tokenizer: &tokenizer,
        conversation: args.template.conversation()?,
        options: args.sampling.options(args.max_tokens, &tokenizer, &args.model)?,
        output: match (args.json, io::stdout().is_terminal()) {
            (true, _) => Output::Json,
            (false, true) => Output::Styled,
            (false, false) => Output::Plain,
        },
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
                chat.clear();
                say!("the conversation is cleared");
            }
            Line::System(text) => chat.set_system_prompt(text),
            Line::Unknown(word) => say!("unknown command {word}; {COMMANDS}"),
            Line::Message(message) => {
                if let Some(generation) = chat.answer(message, out)?.filter(|_| terminal) {
                    report(&generation, device.peak_memory());
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

/// The format of responses.
#[derive(Clone, Copy, PartialEq)]
enum Output {
    /// A terminal, where reasoning is dimmed.
    Styled,
    Plain,
    Json,
}

struct Chat<'a> {
    args: &'a Args,
    model: &'a dyn LanguageModel,
    session: Session<'a>,
    /// The prompt cache that the conversation follows.
    cache: Option<Cache>,
    tokenizer: &'a Tokenizer,
    conversation: Conversation,
    options: GenerateOptions,
    output: Output,
}

impl Chat<'_> {
    /// The text of the prompt with one more message of the user.
    fn prompt(&self, message: &str) -> anyhow::Result<String> {
        let mut conversation = self.conversation.clone();
        conversation.messages.push(Message::user(message));
        Ok(match self.cache {
            Some(_) => conversation.render_after_cache(self.tokenizer)?,
            None => conversation.render(self.tokenizer)?,
        })
    }

    /// Removes all messages but the system prompt.
    fn clear(&mut self) {
        self.conversation.messages.retain(|message| message.role == "system");
    }

    /// Sets the system prompt and clears the conversation, unless the template refuses the prompt.
    fn set_system_prompt(&mut self, text: &str) {
        let system: Vec<Message> = (!text.is_empty()).then(|| Message::system(text)).into_iter().collect();
        let before = std::mem::replace(&mut self.conversation.messages, system);
        match self.prompt("hello") {
            Ok(_) if text.is_empty() => say!("no system prompt; the conversation is cleared"),
            Ok(_) => say!("the system prompt is set; the conversation is cleared"),
            Err(error) => {
                self.conversation.messages = before;
                say!("error: {error:#}; the system prompt is unchanged");
            }
        }
    }

    /// Generates and writes a response. A message that cannot be answered is reported, left out of the conversation,
    /// and gives `None`.
    ///
    /// # Errors
    /// When the output cannot be written.
    fn answer(&mut self, message: &str, out: &mut impl Write) -> anyhow::Result<Option<Generation>> {
        match self.answered(message, out) {
            Err(error) if !error.is::<io::Error>() => {
                say!("error: {error:#}; the message was left out");
                self.session = self.args.session.session(self.model, self.cache.clone())?;
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    fn answered(&mut self, message: &str, out: &mut impl Write) -> anyhow::Result<Generation> {
        let prompt = self.prompt(message)?;
        let ids = self.tokenizer.encode_without_special_tokens(&prompt)?;
        let mut response = Response::new(self.output, ReasoningParser::after(&prompt, self.tokenizer.thinking()));
        let model = || self.args.model.display().to_string();
        let mut stream = self.session.stream(Some(self.tokenizer), &ids, &self.options).with_context(model)?;
        for token in stream.by_ref() {
            response.write(&token.with_context(model)?.text, out)?;
        }
        let generation = stream.into_generation();
        response.finish(out)?;
        match self.output {
            Output::Json => {
                let mut object = as_json(&generation, self.tokenizer, self.model.device().peak_memory())?;
                object["text"] = response.answer.as_str().into();
                object["reasoning"] = response.reasoning.as_str().into();
                writeln!(out, "{object}")?;
            }
            Output::Styled | Output::Plain => writeln!(out)?,
        }
        self.conversation.messages.push(Message::user(message));
        self.conversation.messages.push(Message::assistant(response.answer.trim()));
        Ok(generation)
    }
}

/// A response while it is generated, split into reasoning and answer.
struct Response {
    output: Output,
    parser: ReasoningParser,
    reasoning: String,
    answer: String,
}

impl Response {
    fn new(output: Output, parser: ReasoningParser) -> Self {
        Response { output, parser, reasoning: String::new(), answer: String::new() }
    }

    fn write(&mut self, text: &str, out: &mut impl Write) -> io::Result<()> {
        let parts = self.parser.push(text);
        self.write_parts(parts, out)
    }

    fn finish(&mut self, out: &mut impl Write) -> io::Result<()> {
        let parts = self.parser.finish();
        self.write_parts(parts, out)
    }

    fn write_parts(&mut self, parts: Vec<(Part, String)>, out: &mut impl Write) -> io::Result<()> {
        for (part, text) in parts {
            match part {
                Part::Reasoning => self.reasoning += &text,
                Part::Answer => self.answer += &text,
                Part::ReasoningEnd => {}
            }
            match (part, self.output) {
                (_, Output::Json) => {}
                (Part::Reasoning, Output::Styled) => write!(out, "\x1b[2m{text}\x1b[0m")?,
                (Part::ReasoningEnd, _) => write!(out, "\n---\n")?,
                (Part::Reasoning | Part::Answer, _) => write!(out, "{text}")?,
            }
            out.flush()?;
        }
        Ok(())
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
