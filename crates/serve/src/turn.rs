//! A conversation that is ready to run: its prompt, its options and its grammar.

use crate::Server;
use crate::answer::AnswerParser;
use crate::error::ApiError;
use crate::options::RequestOptions;
use crate::tools::{self, CallForm};
use alluvium_lm::grammar::GrammarText;
use alluvium_lm::tokenizer::reasoning::ReasoningParser;
use alluvium_lm::{Conversation, GenerateOptions};
use serde_json::Value;

/// Which tools the model may or must call.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum ToolChoice {
    /// It decides.
    #[default]
    Auto,
    /// None.
    None,
    /// One of them.
    Required,
    /// This one.
    Named(String),
}

/// A conversation that is ready to run.
pub(crate) struct Turn {
    pub(crate) prompt: Vec<u32>,
    pub(crate) options: GenerateOptions,
    text: String,
    has_tools: bool,
}

impl Turn {
    /// Renders a conversation and compiles what its answer must match. `format` is that of the answer.
    pub(crate) fn new(
        server: &Server,
        mut conversation: Conversation,
        choice: &ToolChoice,
        format: Option<GrammarText>,
        request: (&RequestOptions, Option<usize>),
    ) -> Result<Self, ApiError> {
        if conversation.messages.is_empty() {
            return Err(ApiError::bad("`messages` is empty"));
        }
        if *choice == ToolChoice::None {
            conversation.tools = Vec::new();
        }
        let grammar = grammar(server, &conversation.tools, choice, format)?;
        let has_tools = !conversation.tools.is_empty();
        let text = conversation.render(&server.tokenizer)?;
        let prompt = server.tokenizer.encode_without_special_tokens(&text)?;
        let mut options = request.0.generate(server, prompt.len(), request.1)?;
        options.grammar = match grammar {
            Some(grammar) => {
                let reasoning = ReasoningParser::after(&text, server.tokenizer.thinking());
                Some(server.grammars()?.compile(grammar)?.after_reasoning(reasoning))
            }
            None => None,
        };
        Ok(Turn { prompt, options, text, has_tools })
    }

    /// A parser of a completion.
    pub(crate) fn parser(&self, server: &Server) -> AnswerParser {
        AnswerParser::new(&self.text, &server.tokenizer, self.has_tools)
    }
}

/// The grammar of an answer or of a call.
fn grammar(
    server: &Server,
    tools: &[Value],
    choice: &ToolChoice,
    format: Option<GrammarText>,
) -> Result<Option<GrammarText>, ApiError> {
    let form = CallForm::of(server.tokenizer.chat_template().unwrap_or_default());
    let wanted: Vec<&Value> = match choice {
        ToolChoice::Auto | ToolChoice::None if tools.is_empty() || format.is_none() => return Ok(format),
        ToolChoice::None => return Ok(format),
        ToolChoice::Named(name) => tools.iter().filter(|tool| tools::name(tool) == Some(name)).collect(),
        ToolChoice::Auto | ToolChoice::Required => tools.iter().collect(),
    };
    match (choice, wanted.is_empty()) {
        (ToolChoice::Named(name), true) => Err(ApiError::bad(format!("`tool_choice` names {name}, which is no tool"))),
        (_, true) => Err(ApiError::bad("`tool_choice` is required, but there are no tools")),
        (ToolChoice::Auto, false) => tools::grammar(&wanted, form, format).map(Some),
        (_, false) => tools::grammar(&wanted, form, None).map(Some),
    }
}
