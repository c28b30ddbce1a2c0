//! Flags and helpers that the commands with a prompt share.

use super::model::Opened;
use crate::output::note;
use alluvium::lm::cache::load_prompt_cache;
use alluvium::lm::{Cache, Conversation, LanguageModel, Message, PromptEnd, Session, Tokenizer};
use anyhow::{Context, bail};
use serde_json::{Map, Value};
use std::io::{IsTerminal, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Flags of the chat template.
#[derive(clap::Args)]
pub(crate) struct TemplateArgs {
    /// System prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "ignore_chat_template", allow_hyphen_values = true)]
    pub(crate) system_prompt: Option<String>,
    /// Use the raw prompt, without the chat template
    #[arg(long)]
    pub(crate) ignore_chat_template: bool,
    /// Variables for the chat template, as JSON: {"enable_thinking": false}
    #[arg(long, value_name = "JSON", conflicts_with = "ignore_chat_template")]
    pub(crate) chat_template_config: Option<String>,
    /// Jinja file with a chat template, in place of the model's
    #[arg(long, value_name = "FILE", alias = "chat-template-file", conflicts_with = "ignore_chat_template")]
    pub(crate) chat_template: Option<PathBuf>,
}

impl TemplateArgs {
    /// The model with the chat template of the flag.
    pub(crate) fn apply(&self, opened: Opened) -> anyhow::Result<Opened> {
        let Some(path) = &self.chat_template else { return Ok(opened) };
        let source = std::fs::read_to_string(path)
            .with_context(|| format!("--chat-template: cannot read {}", path.display()))?;
        Ok(Opened { tokenizer: opened.tokenizer.with_chat_template("the file of --chat-template", &source), ..opened })
    }

    /// Whether the prompt is rendered with the chat template. Flags for a template are refused where there is none.
    pub(crate) fn applies(&self, tokenizer: &Tokenizer, model: &Path, prefill: Option<&str>) -> anyhow::Result<bool> {
        let applies = !self.ignore_chat_template && tokenizer.chat_template().is_some();
        let flags = [
            ("--system-prompt", self.system_prompt.is_some()),
            ("--prefill-response", prefill.is_some()),
            ("--chat-template-config", self.chat_template_config.is_some()),
        ];
        match flags.iter().find(|(_, given)| *given && !applies) {
            Some((flag, _)) => bail!(
                "{flag} needs a chat template, {} has none; leave the flag out, or give one with --chat-template FILE",
                model.display()
            ),
            None => Ok(applies),
        }
    }

    /// A conversation with the system prompt and the variables, to which messages are added.
    pub(crate) fn conversation(&self) -> anyhow::Result<Conversation> {
        let messages: Vec<Message> = self.system_prompt.iter().map(|text| Message::system(text.as_str())).collect();
        let variables = variables(self.chat_template_config.as_deref())?;
        Ok(Conversation { variables, ..Conversation::new(messages) })
    }

    /// The ids of a prompt of one user message, which is continued where the prompt is to be cached.
    pub(crate) fn cached_prompt(
        &self,
        tokenizer: &Tokenizer,
        model: &Path,
        prompt: String,
    ) -> anyhow::Result<Vec<u32>> {
        if !self.applies(tokenizer, model, None)? {
            return Ok(tokenizer.encode(&prompt)?);
        }
        let mut conversation = self.conversation()?;
        conversation.messages.push(Message::user(prompt));
        conversation.end = PromptEnd::ContinueFinalMessage;
        Ok(conversation.encode(tokenizer)?)
    }

    /// Refuses a system prompt where a prompt cache holds the beginning of the conversation.
    pub(crate) fn check_cache(&self, cache: Option<&Path>) -> anyhow::Result<()> {
        match (cache, &self.system_prompt) {
            (Some(file), Some(_)) => bail!(
                "--system-prompt: {} holds the beginning of the conversation; give the system prompt to \
                 `alluvium cache_prompt`",
                file.display()
            ),
            _ => Ok(()),
        }
    }
}

/// Flags of the prompt cache and of reading a prompt.
#[derive(clap::Args)]
pub(crate) struct SessionArgs {
    /// Prompt cache from `alluvium cache_prompt`; the prompt follows it
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_cache_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) prefill: PrefillArgs,
}

/// Flags of reading a prompt.
#[derive(clap::Args)]
pub(crate) struct PrefillArgs {
    /// Prompt tokens per forward pass: fewer take less memory, more may be faster [default: chosen for the device]
    #[arg(long, value_name = "N")]
    pub(crate) prefill_step_size: Option<NonZeroUsize>,
}

impl SessionArgs {
    /// The prompt cache for a model.
    pub(crate) fn cache(&self, model: &dyn LanguageModel) -> anyhow::Result<Option<Cache>> {
        let load = |path| load_prompt_cache(path, &model.cache_shapes(), model.dtype(), model.device());
        Ok(self.prompt_cache_file.as_deref().map(load).transpose()?.map(|(cache, _)| cache))
    }

    /// A session that continues after the cache.
    pub(crate) fn session<'m>(
        &self,
        model: &'m dyn LanguageModel,
        cache: Option<Cache>,
    ) -> anyhow::Result<Session<'m>> {
        let session = match cache {
            Some(cache) => Session::with_cache(model, cache),
            None => Session::new(model)?,
        };
        Ok(session.with_prefill_step_size(self.prefill.prefill_step_size))
    }
}

/// Template variables, from the JSON of a flag.
fn variables(json: Option<&str>) -> anyhow::Result<Map<String, Value>> {
    match json.map(serde_json::from_str).transpose().context("--chat-template-config is not valid JSON")? {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map),
        Some(_) => bail!("--chat-template-config: expected a JSON object"),
    }
}

pub(crate) fn tokenizer(found: Option<Tokenizer>, model: &Path) -> anyhow::Result<Tokenizer> {
    found.with_context(|| format!("{} has no tokenizer.json", model.display()))
}

/// The prompt of a flag, with the escapes that mlx-lm replaces; `-` or no flag reads standard input unchanged.
pub(crate) fn text_or_stdin(text: Option<&str>) -> anyhow::Result<String> {
    match text {
        Some(text) if text != "-" => Ok(text.replace("\\n", "\n").replace("\\t", "\t")),
        _ => {
            if std::io::stdin().is_terminal() {
                note!("the prompt is read from the terminal; Ctrl-D ends it, --prompt TEXT gives it at once");
            }
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
            Ok(text)
        }
    }
}
