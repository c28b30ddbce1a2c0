//! The chat in the terminal.

mod commands;
mod input;

use super::DeviceArg;
use super::generate::{as_json, report_speed};
use super::memory::MemoryArg;
use super::model::{LoadArgs, Opened, open};
use super::prompt::{SessionArgs, TemplateArgs};
use super::response::{Form, Prompt, Response};
use super::sampling::{SamplingArgs, max_tokens};
use crate::output::{note, say, say_error};
use crate::signals::Stoppable;
use alluvium::lm::formats::write_atomic;
use alluvium::lm::tokenizer::reasoning::ReasoningParser;
use alluvium::lm::{Cache, Conversation, GenerateOptions, Generation, Message, ReasoningBudget, Session};
use anyhow::{Context, anyhow, bail};
use commands::{COMMANDS, Line};
use input::{Input, Source};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Chat with a model
///
/// Any line is a message but the commands, which /help lists. A message of several lines begins and ends with """, or
/// has a backslash at the end of each line but the last; a pasted text is one message. Ctrl-C stops an answer; at an
/// empty prompt it ends the chat, as Ctrl-D does. The cache of the conversation is reused from turn to turn.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json, a chat template and the safetensors files, or a name on the Hugging Face
    /// Hub: org/name
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
    /// Maximum number of tokens in a response
    #[arg(long, short, alias = "n-predict", short_alias = 'n', value_name = "N", default_value_t = 1024)]
    #[arg(value_parser = max_tokens)]
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
    #[command(flatten)]
    memory: MemoryArg,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> anyhow::Result<()> {
    if args.template.ignore_chat_template {
        bail!("--ignore-chat-template: a chat needs its template; `alluvium generate` continues plain text");
    }
    args.template.check_cache(args.session.prompt_cache_file.as_deref())?;
    let opened = args.template.apply(open(&args.model, &args.load, &args.device, args.max_tokens, &args.memory)?)?;
    if opened.tokenizer.chat_template().is_none() {
        bail!(
            "{} has no chat template; `alluvium generate` continues plain text, and --chat-template FILE gives a \
             template to a model that was trained on chats",
            opened.name()
        );
    }
    let cache = args.session.cache(opened.model.as_ref())?;
    let mut chat = Chat {
        args,
        session: args.session.session(opened.model.as_ref(), cache.clone())?,
        cache,
        conversation: args.template.conversation()?,
        options: args.sampling.options(args.max_tokens, &opened.tokenizer, &opened.folder)?,
        form: if args.json { Form::Json } else { Form::Marked },
        unanswered: None,
        opened: &opened,
    };
    // a template that fails is reported before the first message
    chat.prompt("hello")?;
    let mut source = Source::open()?;
    if source.is_terminal() {
        note!("/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends the chat");
    }
    let mut is_leaving = false;
    loop {
        let line = match source.next()? {
            Input::Text(line) => line,
            Input::Interrupted if is_leaving => return Err(crate::output::Interrupted.into()),
            Input::Interrupted => {
                note!("Ctrl-C again or Ctrl-D ends the chat");
                is_leaving = true;
                continue;
            }
            Input::Undecodable => {
                say_error(&"this line is not UTF-8; it was left out");
                continue;
            }
            Input::End => break,
        };
        is_leaving = false;
        match Line::of(&line) {
            Line::Exit => break,
            Line::Message(message) => is_leaving = chat.answer(&message, &source, out)?.is_break(),
            Line::Retry => match chat.retried() {
                Some(message) => is_leaving = chat.answer(&message, &source, out)?.is_break(),
                None => say!("there is no message to answer again"),
            },
            command => chat.obey(&command),
        }
    }
    Ok(())
}

fn list_commands() {
    COMMANDS.iter().for_each(|(form, what)| say!("{form:<15} {what}"));
}

struct Chat<'a> {
    args: &'a Args,
    opened: &'a Opened,
    session: Session<'a>,
    /// The prompt cache that the conversation follows.
    cache: Option<Cache>,
    conversation: Conversation,
    options: GenerateOptions,
    form: Form,
    /// A message that was left out of the conversation because it has no answer.
    unanswered: Option<String>,
}

impl Chat<'_> {
    fn obey(&mut self, command: &Line<'_>) {
        match *command {
            Line::Nothing | Line::Exit | Line::Message(_) | Line::Retry => {}
            Line::Help => list_commands(),
            Line::Reset => {
                self.clear();
                say!("the conversation is cleared");
            }
            Line::System(text) => self.set_system_prompt(text),
            Line::Undo => match self.undo() {
                true => say!("the last message and its answer are removed"),
                false => say!("there is no message to remove"),
            },
            Line::Tokens => self.count(),
            Line::Save(file) => report_error(self.save(file)),
            Line::Load(file) => report_error(self.load(file)),
            Line::Unknown(word) => {
                say!("unknown command {word}");
                list_commands();
            }
        }
    }

    /// The text of the prompt with one more message of the user.
    fn prompt(&self, message: &str) -> anyhow::Result<String> {
        let mut conversation = self.conversation.clone();
        conversation.messages.push(Message::user(message));
        Ok(match self.cache {
            Some(_) => conversation.render_after_cache(&self.opened.tokenizer)?,
            None => conversation.render(&self.opened.tokenizer)?,
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
                say_error(&format!("{error:#}; the system prompt is unchanged"));
            }
        }
    }

    /// Removes the last message of the user and what follows it. Returns whether there was one.
    fn undo(&mut self) -> bool {
        let last = self.conversation.messages.iter().rposition(|message| message.role == "user");
        last.inspect(|&at| self.conversation.messages.truncate(at)).is_some()
    }

    /// The message that is to be answered again: one without an answer, or the last one, which is removed.
    fn retried(&mut self) -> Option<String> {
        if let Some(message) = self.unanswered.take() {
            return Some(message);
        }
        let last = self.conversation.messages.iter().rev().find(|message| message.role == "user")?;
        let text = last.text()?.to_owned();
        self.undo();
        Some(text)
    }

    fn count(&self) {
        let count = || Ok(self.opened.tokenizer.encode_without_special_tokens(&self.prompt("")?)?.len());
        let counted: anyhow::Result<usize> = count();
        match counted {
            Ok(tokens) => say!("{} messages, {tokens} tokens", self.conversation.messages.len()),
            Err(error) => say_error(&format!("{error:#}")),
        }
    }

    /// Writes the messages as JSON.
    fn save(&self, file: &str) -> anyhow::Result<()> {
        let path = Path::new(file);
        if file.is_empty() {
            bail!("/save needs the name of a file");
        }
        let messages = serde_json::json!({ "messages": self.conversation.messages });
        let text = serde_json::to_string_pretty(&messages)?;
        write_atomic(path, |out| writeln!(out, "{text}"))?;
        say!("{}: {} messages saved", path.display(), self.conversation.messages.len());
        Ok(())
    }

    /// Reads messages that [`Chat::save`] wrote, or a list of them.
    fn load(&mut self, file: &str) -> anyhow::Result<()> {
        if file.is_empty() {
            bail!("/load needs the name of a file");
        }
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
        let mut json: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("{file} is no JSON"))?;
        let list = if json.is_array() { json } else { json["messages"].take() };
        let messages: Vec<Message> = serde_json::from_value(list)
            .map_err(|error| anyhow!("{file}: expected `messages` with `role` and `content` each: {error}"))?;
        let before = std::mem::replace(&mut self.conversation.messages, messages);
        if let Err(error) = self.prompt("hello") {
            self.conversation.messages = before;
            return Err(error.context(format!("{file}: the template refuses it; the conversation is unchanged")));
        }
        say!("{file}: {} messages loaded", self.conversation.messages.len());
        Ok(())
    }

    /// Generates and writes a response, unless Ctrl-C breaks it. A message that cannot be answered is reported and left
    /// out of the conversation.
    ///
    /// # Errors
    /// When the output cannot be written.
    fn answer(&mut self, message: &str, source: &Source, out: &mut impl Write) -> anyhow::Result<ControlFlow<()>> {
        self.unanswered = None;
        match self.answered(message, source, out) {
            Err(error) if !error.is::<io::Error>() => {
                say_error(&format!("{error:#}; the message was left out"));
                self.session = self.args.session.session(self.opened.model.as_ref(), self.cache.clone())?;
                Ok(ControlFlow::Continue(()))
            }
            result => result,
        }
    }

    fn answered(&mut self, message: &str, source: &Source, out: &mut impl Write) -> anyhow::Result<ControlFlow<()>> {
        let tokenizer = &self.opened.tokenizer;
        let text = self.prompt(message)?;
        let ids = tokenizer.encode_without_special_tokens(&text)?;
        self.opened.warn_of_length(ids.len());
        let thinking = ReasoningParser::after(&text, tokenizer.thinking());
        let budget = |tokens| ReasoningBudget { tokens, thinking: thinking.clone() };
        self.options.reasoning_budget = self.args.sampling.reasoning_budget.map(budget);
        let mut response = Response::new(self.form, thinking);
        let prompt = Prompt { tokenizer, ids: &ids, options: &self.options };
        // elsewhere Ctrl-C ends the program
        let stoppable = source.is_terminal().then(Stoppable::by_ctrl_c);
        let mut check = || stoppable.as_ref().map_or(ControlFlow::Continue(()), Stoppable::check);
        let generation =
            prompt.respond(&mut self.session, &mut response, &mut check, out).with_context(|| self.opened.name())?;
        match self.form {
            Form::Json => {
                let mut object = as_json(&generation, &response, &prompt)?;
                object["peak_memory"] = self.opened.device.peak_memory().into();
                writeln!(out, "{object}")?;
            }
            Form::Marked | Form::Answer => writeln!(out)?,
        }
        // the next answer, and another one to the same message, is drawn anew
        self.options.seed = self.options.seed.wrapping_add(1);
        self.keep(message, &response, &generation);
        if source.is_terminal() {
            report_speed(&generation);
        }
        Ok(match generation.finish_reason {
            Some(_) => ControlFlow::Continue(()),
            None => ControlFlow::Break(()),
        })
    }

    /// Adds a message and its answer to the conversation.
    fn keep(&mut self, message: &str, response: &Response, generation: &Generation) {
        let answer = response.answer.trim();
        if generation.finish_reason.is_none() {
            // the terminal shows ^C in the last line
            note!("");
        }
        let is_whole = generation.finish_reason == Some(alluvium::lm::FinishReason::Stop);
        response.note_cut(generation);
        if answer.is_empty() && !is_whole {
            note!("there is no answer yet, so the message was left out; /retry asks again");
            self.unanswered = Some(message.to_owned());
            return;
        }
        if generation.finish_reason.is_none() {
            note!("stopped; the answer so far stays in the conversation, /undo removes it");
        }
        self.conversation.messages.push(Message::user(message));
        self.conversation.messages.push(Message::assistant(answer));
    }
}

fn report_error(result: anyhow::Result<()>) {
    if let Err(error) = result {
        say_error(&format!("{error:#}"));
    }
}
