//! `POST /v1/completions`.

use crate::chat::Head;
use crate::error::ApiError;
use crate::options::RequestOptions;
use crate::running::Running;
use crate::{ApiJson, Shared};
use alluvium_lm::engine::Event;
use alluvium_lm::{TokenLogprob, Tokenizer};
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// The most prompts of a request.
pub(crate) const MAX_PROMPTS: usize = 64;

#[derive(Deserialize)]
pub(crate) struct CompletionRequest {
    prompt: Prompt,
    logprobs: Option<usize>,
    #[serde(default)]
    echo: bool,
    #[serde(flatten)]
    options: RequestOptions,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

impl Prompt {
    /// The tokens of each.
    pub(crate) fn encode(self, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
        Ok(match self {
            Prompt::Text(text) => vec![tokenizer.encode(&text)?],
            Prompt::Tokens(tokens) => vec![tokens],
            Prompt::Texts(texts) => {
                texts.iter().map(|text| tokenizer.encode(text)).collect::<alluvium_core::Result<_>>()?
            }
            Prompt::TokenLists(lists) => lists,
        })
    }
}

pub(crate) async fn complete(
    State(server): State<Shared>,
    body: ApiJson<CompletionRequest>,
) -> Result<Response, ApiError> {
    let CompletionRequest { prompt, logprobs, echo, options } = body.0;
    let model = server.model(options.model.as_deref())?;
    if echo && options.stream && logprobs.is_some() {
        return Err(ApiError::bad("`echo` with `logprobs` cannot be streamed; leave one of the three out"));
    }
    let grammar =
        options.grammar()?.map(|grammar| server.grammars()?.compile(grammar).map_err(ApiError::from)).transpose()?;
    let prompts = prompt.encode(&server.tokenizer)?;
    if !(1..=MAX_PROMPTS).contains(&prompts.len()) {
        return Err(ApiError::bad(format!("{} prompts came, expected 1 to {MAX_PROMPTS}", prompts.len())));
    }
    let mut jobs = Vec::new();
    for prompt in prompts {
        let mut options = options.generate(&server, prompt.len(), logprobs)?;
        options.grammar = grammar.clone();
        options.prompt_logprobs = logprobs.filter(|_| echo);
        jobs.push((prompt, options));
    }
    let choices = options.choices()?;
    let mut running = Running::submit(&model.engine, &jobs, choices)?;
    let head = Head::new(&server, "cmpl-", &model.name);
    let mut echoes = Vec::new();
    for (prompt, _) in jobs.into_iter().filter(|_| echo) {
        echoes.push((server.tokenizer.decode(&prompt)?, prompt));
    }
    if options.stream {
        let usage = options.streams_usage();
        let echoes = echoes.into_iter().map(|(text, _)| text).collect();
        return Ok(crate::sse::response(CompletionStream { running, head, usage, echoes, choices, server }));
    }
    let generations = running.all().await?;
    let choices: Vec<Value> = generations
        .iter()
        .enumerate()
        .map(|(index, generation)| {
            let (text, prompt) =
                echoes.get(index / choices).map_or(("", None), |(text, prompt)| (text, prompt.first()));
            let logprobs = [&generation.prompt_logprobs[..], &generation.logprobs].concat();
            json!({
                "index": index,
                "text": format!("{text}{}", generation.text),
                "finish_reason": generation.finish_reason.map(|reason| reason.as_str()),
                "logprobs": logprobs_of(&server.tokenizer, prompt.copied().filter(|_| !logprobs.is_empty()), &logprobs),
            })
        })
        .collect();
    let mut body = head.object("text_completion", choices.into());
    body["usage"] = running.usage.json();
    Ok(Json(body).into_response())
}

/// Log-probabilities as this endpoint has them; null where there are none. The first token of a prompt has none.
fn logprobs_of(tokenizer: &Tokenizer, first: Option<u32>, all: &[TokenLogprob]) -> Value {
    if all.is_empty() && first.is_none() {
        return Value::Null;
    }
    let text = |token: u32| tokenizer.decode(&[token]).unwrap_or_default();
    let top = |token: &TokenLogprob| -> Value {
        token.top_logprobs.iter().map(|&(token, logprob)| (text(token), logprob.into())).collect::<Map<_, _>>().into()
    };
    let tokens: Vec<String> = first.into_iter().chain(all.iter().map(|token| token.token)).map(text).collect();
    let mut end = 0;
    let offset = |text: &String| {
        end += text.chars().count();
        end - text.chars().count()
    };
    let offsets: Vec<usize> = tokens.iter().map(offset).collect();
    let none = || first.map(|_| Value::Null).into_iter();
    json!({
        "tokens": tokens,
        "token_logprobs": none().chain(all.iter().map(|token| token.logprob.into())).collect::<Vec<Value>>(),
        "top_logprobs": none().chain(all.iter().map(top)).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

struct CompletionStream {
    running: Running,
    head: Head,
    usage: bool,
    /// The texts of the prompts, where they are wanted.
    echoes: Vec<String>,
    choices: usize,
    server: Shared,
}

impl crate::sse::Chunks for CompletionStream {
    async fn next(&mut self) -> Option<Vec<Value>> {
        let (index, event) = self.running.next().await?;
        let chunk = |text: &str, reason: Value, logprobs: Value| {
            let choice = json!({"index": index, "text": text, "finish_reason": reason, "logprobs": logprobs});
            self.head.object("text_completion", json!([choice]))
        };
        Some(match event {
            Event::Started { .. } => match self.echoes.get(index / self.choices) {
                Some(prompt) => vec![chunk(prompt, Value::Null, Value::Null)],
                None => Vec::new(),
            },
            Event::Embedded(_) => Vec::new(),
            Event::Token(token) => {
                let logprobs = logprobs_of(&self.server.tokenizer, None, token.logprob.as_slice());
                let is_empty = token.text.is_empty() && logprobs.is_null();
                if is_empty { Vec::new() } else { vec![chunk(&token.text, Value::Null, logprobs)] }
            }
            Event::Finished(generation) => {
                vec![chunk("", generation.finish_reason.map_or(Value::Null, |r| r.as_str().into()), Value::Null)]
            }
            Event::Failed(error) => vec![ApiError::from(error).parts().1],
        })
    }

    fn last(&mut self) -> Option<Value> {
        let mut object = self.head.object("text_completion", json!([]));
        object["usage"] = self.running.usage.json();
        self.usage.then_some(object)
    }
}
