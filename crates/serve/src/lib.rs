//! An HTTP server for one model, with OpenAI's API: chat completions, completions, models.
//!
//! Requests are completed by an [`Engine`]: together, with prompts' common beginnings kept. A client that hangs up
//! cancels its request.

mod chat;
mod completions;
mod error;
mod metrics;
mod options;
mod running;
mod sse;
mod tools;

use crate::error::ApiError;
use alluvium_lm::engine::{Engine, EngineOptions};
use alluvium_lm::{GenerateOptions, Loaded, Tokenizer};
use axum::extract::{DefaultBodyLimit, Json, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::TcpListener;

/// Bytes of a request's body.
const MAX_BODY: usize = 16 << 20;

/// The settings of a server.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The model's name in answers; requests may give any name.
    pub model_name: String,
    /// A key that requests must send as `Authorization: Bearer KEY`. `None` lets everyone in.
    pub api_key: Option<String>,
    /// The limits of the engine.
    pub engine: EngineOptions,
    /// What applies where a request says nothing: sampling, `max_tokens`.
    pub defaults: GenerateOptions,
    /// The most tokens of a prompt and its completion together.
    pub max_context: usize,
}

/// What every handler needs.
struct Server {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    options: ServeOptions,
    started: u64,
}

type Shared = Arc<Server>;

/// The routes of a server for a loaded model.
///
/// # Errors
/// A message, when the model has no tokenizer.
pub fn router(loaded: Loaded, options: ServeOptions) -> Result<Router, String> {
    let tokenizer = loaded.tokenizer.ok_or("the model has no tokenizer.json; a server needs one")?;
    let tokenizer = Arc::new(tokenizer);
    let engine = Engine::new(loaded.model.into(), Some(tokenizer.clone()), options.engine);
    let server = Arc::new(Server { engine, tokenizer, options, started: now() });
    let api = Router::new()
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/metrics", get(metrics::metrics))
        .layer(middleware::from_fn(not_allowed))
        .layer(from_fn_with_state(server.clone(), authorize));
    let open = Router::new()
        .route("/", get(|| async { Html(include_str!("page.html")) }))
        .route("/health", get(|| async { Json(json!({"status": "ok"})) }));
    let router = api.merge(open).fallback(|| async { ApiError::not_found("there is no such path") });
    Ok(router.layer(DefaultBodyLimit::max(MAX_BODY)).with_state(server))
}

/// Serves until `stop` resolves; then refuses new connections and finishes what runs.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(stop).await
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
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    match is_equal(given.as_bytes(), key.as_bytes()) {
        true => next.run(request).await,
        false => ApiError::new(StatusCode::UNAUTHORIZED, "the API key is missing or wrong").into(),
    }
}

/// Compares in a time that depends on the lengths alone.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differences) == 0
}

fn describe(server: &Server) -> Value {
    json!({"id": server.options.model_name, "object": "model", "created": server.started, "owned_by": "alluvium"})
}

async fn models(State(server): State<Shared>) -> Json<Value> {
    Json(json!({"object": "list", "data": [describe(&server)]}))
}

async fn model(State(server): State<Shared>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    match name == server.options.model_name {
        true => Ok(Json(describe(&server))),
        false => Err(ApiError::not_found(&format!("there is no model `{name}`"))),
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

impl<T: serde::de::DeserializeOwned, S: Send + Sync> axum::extract::FromRequest<S> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match axum::body::Bytes::from_request(request, state).await {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(body) => Ok(ApiJson(body)),
                Err(error) => Err(ApiError::bad(format!("the body is not what is expected: {error}"))),
            },
            Err(rejection) => Err(ApiError::new(rejection.status(), &rejection.body_text())),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, body) = self.parts();
        (status, Json(body)).into_response()
    }
}

impl From<ApiError> for Response {
    fn from(error: ApiError) -> Self {
        error.into_response()
    }
}
