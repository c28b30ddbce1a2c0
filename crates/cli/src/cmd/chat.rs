use super::DeviceArg;
use super::generate::{SamplingArgs, report, tokenizer, variables};
use crate::output::say;
use alluvium::lm::formats::chat::{Ending, Message};
use alluvium::lm::formats::thinking::{Part, Thinking};
use alluvium::lm::{Options, Session, Tokenizer, load};
use serde_json::{Map, Value};
use std::io::{BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Talk with a model
///
/// What was said before is not read again. /reset forgets it, /system TEXT sets what the model is told first, /exit or the
/// end of the input ends the chat.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json, a chat template and the safetensors files
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// At most this many tokens an answer
    #[arg(long, short, value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    /// What the model is told before the first message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system_prompt: Option<String>,
    /// More for the template, as JSON: {"enable_thinking": false}
    #[arg(long, value_name = "JSON")]
    chat_template_config: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    device: DeviceArg,
}

pub(crate) fn run(args: Args, out: &mut impl Write) -> anyhow::Result<()> {
    let device = args.device.open()?;
    let loaded = load(&args.model, &device)?;
    let tokenizer = tokenizer(loaded.tokenizer, &args.model)?;
    let mut chat = Chat {
        session: Session::new(loaded.model.as_ref())?,
        tokenizer: &tokenizer,
        system: args.system_prompt,
        history: Vec::new(),
        variables: variables(args.chat_template_config.as_deref())?,
        options: args.sampling.options(args.max_tokens),
        styled: std::io::stdout().is_terminal(),
    };
    // a template that fails is said before anything is typed
    chat.prompt("")?;
    let terminal = std::io::stdin().is_terminal();
    if terminal {
        say!("/reset forgets, /system TEXT sets what the model is told first, /exit ends");
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if terminal {
            write!(out, ">> ")?;
            out.flush()?;
        }
        let Some(line) = lines.next().transpose()? else { break };
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/reset" => chat.history.clear(),
            command if command.starts_with("/system") => {
                chat.system = Some(command["/system".len()..].trim().to_owned()).filter(|text| !text.is_empty());
                chat.history.clear();
            }
            command if command.starts_with('/') => {
                say!("there is no {command}; there are /reset, /system TEXT and /exit");
            }
            message => {
                let summary = chat.answer(message, out)?;
                if terminal {
                    report(&summary, device.peak_memory());
                }
            }
        }
    }
    Ok(())
}

struct Chat<'a> {
    session: Session<'a>,
    tokenizer: &'a Tokenizer,
    system: Option<String>,
    history: Vec<Message>,
    variables: Map<String, Value>,
    options: Options,
    /// Whether the reader is a terminal, where thinking is dimmed.
    styled: bool,
}

impl Chat<'_> {
    fn prompt(&self, message: &str) -> anyhow::Result<String> {
        let system = self.system.as_deref().map(|text| Message::new("system", text));
        let messages: Vec<Message> =
            system.into_iter().chain(self.history.iter().cloned()).chain([Message::new("user", message)]).collect();
        Ok(self.tokenizer.chat(&messages, Ending::Answer, &self.variables)?)
    }

    fn answer(&mut self, message: &str, out: &mut impl Write) -> anyhow::Result<alluvium::lm::Summary> {
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
