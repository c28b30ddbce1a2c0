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
const MAX_PROMPTS: usize = 64;

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
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<u32>>),
}

impl Prompt {
    fn encode(self, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
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
    if echo {
        return Err(ApiError::bad("`echo` is not supported; leave it out"));
    }
    let prompts = prompt.encode(&server.tokenizer)?;
    if !(1..=MAX_PROMPTS).contains(&prompts.len()) {
        return Err(ApiError::bad(format!("{} prompts came, expected 1 to {MAX_PROMPTS}", prompts.len())));
    }
    let mut jobs = Vec::new();
    for prompt in prompts {
        let options = options.generate(&server, prompt.len(), logprobs)?;
        jobs.push((prompt, options));
    }
    let mut running = Running::submit(&server, &jobs, options.choices()?)?;
    let head = Head::new(&server, "cmpl");
    if options.stream {
        let usage = options.stream_options.include_usage;
        return Ok(crate::sse::response(CompletionStream { running, head, usage, server }));
    }
    let generations = running.all().await?;
    let choices: Vec<Value> = generations
        .iter()
        .enumerate()
        .map(|(index, generation)| {
            json!({
                "index": index,
                "text": generation.text,
                "finish_reason": generation.finish_reason.map(|reason| reason.as_str()),
                "logprobs": logprobs_of(&server.tokenizer, &generation.logprobs),
            })
        })
        .collect();
    let mut body = head.object("text_completion", choices.into());
    body["usage"] = running.usage.json();
    Ok(Json(body).into_response())
}

/// Log-probabilities as this endpoint has them; null where there are none.
fn logprobs_of(tokenizer: &Tokenizer, all: &[TokenLogprob]) -> Value {
    if all.is_empty() {
        return Value::Null;
    }
    let text = |token: u32| tokenizer.decode(&[token]).unwrap_or_default();
    let top = |token: &TokenLogprob| -> Map<String, Value> {
        token.top_logprobs.iter().map(|&(token, logprob)| (text(token), logprob.into())).collect()
    };
    json!({
        "tokens": all.iter().map(|token| text(token.token)).collect::<Vec<_>>(),
        "token_logprobs": all.iter().map(|token| token.logprob).collect::<Vec<_>>(),
        "top_logprobs": all.iter().map(top).collect::<Vec<_>>(),
    })
}

struct CompletionStream {
    running: Running,
    head: Head,
    usage: bool,
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
            Event::Started { .. } => Vec::new(),
            Event::Token(token) => {
                let logprobs = logprobs_of(&self.server.tokenizer, token.logprob.as_slice());
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
