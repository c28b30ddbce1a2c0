//! An HTTP server for one model and its adapters, with OpenAI's API (chat completions, completions, responses,
//! embeddings, models) and Anthropic's (messages).
//!
//! Requests are completed by an [`Engine`]: together, with prompts' common beginnings kept. A client that hangs up
//! cancels its request.

mod answer;
mod chat;
mod completions;
mod embeddings;
mod error;
mod http;
mod messages;
mod metrics;
mod options;
mod responses;
mod running;
mod sse;
mod timed;
mod tools;
mod turn;

pub use http::{Limits, serve};

use crate::error::{ApiError, MessagesError};
use alluvium_lm::engine::{Engine, EngineOptions, Refusal};
use alluvium_lm::grammar::GrammarCompiler;
use alluvium_lm::{GenerateOptions, LanguageModel, Loaded, Tokenizer};
use axum::extract::{DefaultBodyLimit, Json, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a request's body.
const MAX_BODY: usize = 16 << 20;
/// What the page may do: nothing but talk to this server.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The model's name. Where there are no adapters, requests may give any name.
    pub model_name: String,
    /// The same model with adapters, by names of their own. Each has an engine.
    pub adapters: Vec<AdaptedModel>,
    /// A key that requests must send as `Authorization: Bearer KEY`. `None` lets everyone in.
    pub api_key: Option<String>,
    /// The limits of the engine.
    pub engine: EngineOptions,
    /// What applies where a request says nothing: sampling, `max_tokens`.
    pub defaults: GenerateOptions,
    /// The most tokens of a prompt and its completion together.
    pub max_context: usize,
    /// The limits of connections. Of these the router keeps that of bodies, [`serve`] the others.
    pub limits: Limits,
}

/// A model with an adapter.
#[derive(Clone)]
pub struct AdaptedModel {
    /// Its name.
    pub name: String,
    /// The model.
    pub model: Arc<dyn LanguageModel>,
}

impl std::fmt::Debug for AdaptedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AdaptedModel {}", self.name)
    }
}

/// A model that requests may name.
struct Served {
    name: String,
    engine: Engine,
}

/// What every handler needs.
struct Server {
    /// The plain model, then those with adapters.
    models: Vec<Served>,
    tokenizer: Arc<Tokenizer>,
    /// Made for the first request with a grammar.
    grammars: OnceLock<Result<GrammarCompiler, String>>,
    options: ServeOptions,
    started: u64,
}

type Shared = Arc<Server>;

impl Server {
    /// The model of this name.
    fn model(&self, name: Option<&str>) -> Result<&Served, ApiError> {
        let named = self.models.iter().find(|model| name == Some(model.name.as_str()));
        match (named, &self.models[..]) {
            (Some(model), _) | (None, [model]) => Ok(model),
            (None, [model, ..]) if name.is_none() => Ok(model),
            (None, _) => Err(no_model(name.unwrap_or_default())),
        }
    }

    /// The compiler of grammars.
    fn grammars(&self) -> Result<&GrammarCompiler, ApiError> {
        let make = || GrammarCompiler::new(&self.tokenizer).map_err(|error| error.to_string());
        self.grammars.get_or_init(make).as_ref().map_err(|why| ApiError::bad(why.as_str()))
    }
}

fn no_model(name: &str) -> ApiError {
    ApiError::not_found(format!("there is no model `{name}`; /v1/models lists them")).with_code("model_not_found")
}

/// The routes of a server for a loaded model.
///
/// # Errors
/// A message, when the model has no tokenizer or two models have one name.
pub fn router(loaded: Loaded, options: ServeOptions) -> Result<Router, String> {
    let tokenizer = loaded.tokenizer.ok_or("the model has no tokenizer.json; a server needs one")?;
    let tokenizer = Arc::new(tokenizer);
    let plain = AdaptedModel { name: options.model_name.clone(), model: loaded.model.into() };
    let mut models: Vec<Served> = Vec::new();
    for AdaptedModel { name, model } in std::iter::once(plain).chain(options.adapters.iter().cloned()) {
        if models.iter().any(|model| model.name == name) {
            return Err(format!("two models are named {name}; give the adapter another name"));
        }
        models.push(Served { name, engine: Engine::new(model, Some(tokenizer.clone()), options.engine) });
    }
    let server = Arc::new(Server { models, tokenizer, grammars: OnceLock::new(), options, started: now() });
    let api = Router::new()
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/responses", post(responses::complete))
        .route("/v1/messages", post(messages::complete))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/models", get(models_list))
        .route("/v1/models/{*name}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/metrics", get(metrics::metrics))
        .layer(middleware::from_fn(not_allowed))
        .layer(from_fn_with_state(server.clone(), authorize));
    let open = Router::new()
        .route(
            "/",
            get(|| async { ([(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)], Html(include_str!("page.html"))) }),
        )
        .route("/health", get(health));
    let router = api.merge(open).fallback(|| async { ApiError::not_found("there is no such path") });
    Ok(router.layer(DefaultBodyLimit::max(MAX_BODY)).with_state(server))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Gives axum's own plain-text refusals the form of the API.
async fn not_allowed(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    match response.status() {
        StatusCode::METHOD_NOT_ALLOWED => ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed").into(),
        _ => response,
    }
}

/// Refuses requests without the key.
async fn authorize(State(server): State<Shared>, headers: HeaderMap, request: Request, next: Next) -> Response {
    let Some(key) = &server.options.api_key else { return next.run(request).await };
    // Anthropic's clients have a header of their own
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let given = bearer.or(headers.get("x-api-key").map(|value| value.as_bytes())).unwrap_or_default();
    let wrong =
        || ApiError::new(StatusCode::UNAUTHORIZED, "the API key is missing or wrong").with_code("invalid_api_key");
    match is_equal(given, key.as_bytes()) {
        true => next.run(request).await,
        false if request.uri().path().starts_with("/v1/messages") => MessagesError::from(wrong()).into_response(),
        false => wrong().into(),
    }
}

/// Compares in a time that depends on the lengths alone.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differences) == 0
}

/// Whether every engine runs.
async fn health(State(server): State<Shared>) -> Result<Json<Value>, ApiError> {
    match server.models.iter().find(|model| !model.engine.is_running()) {
        Some(_) => Err(Refusal::Stopped.into()),
        None => Ok(Json(json!({"status": "ok"}))),
    }
}

fn describe(server: &Server, name: &str) -> Value {
    json!({"id": name, "object": "model", "created": server.started, "owned_by": "alluvium"})
}

async fn models_list(State(server): State<Shared>) -> Json<Value> {
    let models: Vec<Value> = server.models.iter().map(|model| describe(&server, &model.name)).collect();
    Json(json!({"object": "list", "data": models}))
}

async fn model(State(server): State<Shared>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    match server.models.iter().any(|model| model.name == name) {
        true => Ok(Json(describe(&server, &name))),
        false => Err(no_model(&name)),
    }
}

#[derive(Deserialize)]
struct Text {
    content: String,
    #[serde(default)]
    add_special: bool,
}

async fn tokenize(State(server): State<Shared>, text: ApiJson<Text>) -> Result<Json<Value>, ApiError> {
    let Text { content, add_special } = text.0;
    let tokens = match add_special {
        true => server.tokenizer.encode(&content)?,
        false => server.tokenizer.encode_without_special_tokens(&content)?,
    };
    Ok(Json(json!({"tokens": tokens})))
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<u32>,
}

async fn detokenize(State(server): State<Shared>, tokens: ApiJson<Tokens>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"content": server.tokenizer.decode(&tokens.0.tokens)?})))
}

/// A body of JSON whose errors have the form of the API.
struct ApiJson<T>(T);

impl<T: serde::de::DeserializeOwned> axum::extract::FromRequest<Shared> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Shared) -> Result<Self, ApiError> {
        let length =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: usize| length > MAX_BODY) {
            let why = format!("the body has more than {MAX_BODY} bytes");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, why));
        }
        let body = axum::body::Bytes::from_request(request, state);
        let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
        match tokio::time::timeout(state.options.limits.body_time, body).await.map_err(late)? {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(body) => Ok(ApiJson(body)),
                Err(error) => Err(ApiError::bad(format!("the body is not what is expected: {error}"))),
            },
            Err(rejection) => Err(ApiError::new(rejection.status(), rejection.body_text())),
        }
    }
}
