//! Errors in the form of OpenAI's API, and in that of Anthropic's.

use alluvium_lm::engine::Refusal;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};

/// What is said of an engine whose thread has ended.
pub(crate) const STOPPED: &str = "the engine of the model has stopped after an error; start the server again";

/// An error that a client gets.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    /// A name for programs, where OpenAI's API documents one.
    code: Option<&'static str>,
}

impl ApiError {
    /// An error with a status.
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError { status, message: message.into(), code: None }
    }

    /// A request that is wrong.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Something that is not there.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The same with a name for programs.
    pub(crate) fn with_code(self, code: &'static str) -> Self {
        ApiError { code: Some(code), ..self }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The status and the body.
    pub(crate) fn parts(self) -> (StatusCode, Value) {
        let error = json!({"message": self.message, "type": self.kind(), "param": null, "code": self.code});
        (self.status, json!({"error": error}))
    }

    /// The body in the form of Anthropic's API.
    pub(crate) fn anthropic(self) -> (StatusCode, Value) {
        let kind = if self.kind() == "server_error" { "api_error" } else { self.kind() };
        (self.status, json!({"type": "error", "error": {"type": kind, "message": self.message}}))
    }
}

/// Errors of the model and the tokenizer that a request caused.
impl From<alluvium_core::Error> for ApiError {
    fn from(error: alluvium_core::Error) -> Self {
        ApiError::bad(error.to_string())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::QueueFull => Self::new(StatusCode::TOO_MANY_REQUESTS, "too many requests wait; try again later")
                .with_code("rate_limit_exceeded"),
            Refusal::ShuttingDown => Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down"),
            Refusal::Stopped => Self::new(StatusCode::SERVICE_UNAVAILABLE, STOPPED),
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

/// An [`ApiError`] in the form of Anthropic's API.
pub(crate) struct MessagesError(ApiError);

impl<E: Into<ApiError>> From<E> for MessagesError {
    fn from(error: E) -> Self {
        MessagesError(error.into())
    }
}

impl IntoResponse for MessagesError {
    fn into_response(self) -> Response {
        let (status, body) = self.0.anthropic();
        (status, Json(body)).into_response()
    }
}
