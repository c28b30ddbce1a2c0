//! The lines of a chat: from an editor on a terminal, else from standard input.

use super::commands::{COMMANDS, goes_on};
use crate::signals::restore_terminal_on_exit;
use anyhow::Context as _;
use etcetera::base_strategy::{BaseStrategy, choose_native_strategy};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, Config, Context, Editor, Helper, Result};
use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;

/// What the user gave.
pub(super) enum Input {
    Text(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    /// Bytes that are not UTF-8.
    Undecodable,
    End,
}

/// The source of the messages.
pub(super) enum Source {
    Terminal(Box<Terminal>),
    Lines(io::StdinLock<'static>),
}

/// The line editor and the file of its history.
pub(super) struct Terminal {
    editor: Editor<Lines, FileHistory>,
    history: Option<PathBuf>,
}

impl Source {
    pub(super) fn open() -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Source::Lines(io::stdin().lock()));
        }
        restore_terminal_on_exit();
        let config = Config::builder()
            .max_history_size(1000)
            .map(|config| config.bracketed_paste(true).auto_add_history(false).behavior(behavior()).build())
            .context("cannot open the terminal")?;
        let mut editor = Editor::with_config(config).context("cannot open the terminal")?;
        editor.set_helper(Some(Lines));
        let history = history_file();
        if let Some(path) = &history {
            // the first chat has no history yet
            let _ = editor.load_history(path);
        }
        Ok(Source::Terminal(Box::new(Terminal { editor, history })))
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Source::Terminal(_))
    }

    pub(super) fn next(&mut self) -> anyhow::Result<Input> {
        match self {
            Source::Terminal(terminal) => terminal.next(),
            Source::Lines(lines) => next_lines(lines),
        }
    }
}

/// The editor writes to the terminal also where standard output is a file.
fn behavior() -> Behavior {
    if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm }
}

impl Terminal {
    fn next(&mut self) -> anyhow::Result<Input> {
        match self.editor.readline(">> ") {
            Ok(text) => {
                if !text.trim().is_empty() {
                    self.editor.add_history_entry(text.as_str()).context("cannot keep the history")?;
                    if let Some(path) = &self.history {
                        // a chat goes on without its history
                        let _ = self.editor.save_history(path);
                    }
                }
                Ok(Input::Text(text))
            }
            Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(error) => Err(error).context("cannot read from the terminal"),
        }
    }
}

/// A line of standard input, or several where a message goes on.
fn next_lines(lines: &mut impl BufRead) -> anyhow::Result<Input> {
    let mut text = String::new();
    loop {
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Ok(if text.is_empty() { Input::End } else { Input::Text(text) });
        }
        let Ok(line) = String::from_utf8(line) else { return Ok(Input::Undecodable) };
        text += &line;
        if !goes_on(text.trim_end_matches(['\r', '\n'])) {
            return Ok(Input::Text(text));
        }
    }
}

/// The file of the history, in the user's folder of states.
fn history_file() -> Option<PathBuf> {
    let folders = choose_native_strategy().ok()?;
    let folder = folders.state_dir().unwrap_or_else(|| folders.data_dir()).join("alluvium");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}

/// Decides when a message is complete, and completes commands.
#[derive(Clone, Copy)]
struct Lines;

impl Helper for Lines {}
impl Highlighter for Lines {}

impl Hinter for Lines {
    type Hint = String;
}

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> Result<ValidationResult> {
        Ok(if goes_on(context.input()) { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Completer for Lines {
    type Candidate = String;

    fn complete(&self, line: &str, place: usize, _: &Context<'_>) -> Result<(usize, Vec<String>)> {
        let typed = &line[..place];
        let words = COMMANDS.iter().filter_map(|(form, _)| form.split(' ').next());
        let fits = |word: &&str| typed.starts_with('/') && word.starts_with(typed);
        Ok((0, words.filter(fits).map(str::to_owned).collect()))
    }
}
