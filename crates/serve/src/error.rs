//! Errors in the form of OpenAI's API.

use alluvium_lm::engine::Refusal;
use axum::http::StatusCode;
use serde_json::{Value, json};

/// An error that a client gets.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    /// An error with a status.
    pub(crate) fn new(status: StatusCode, message: &str) -> Self {
        ApiError { status, message: message.to_owned() }
    }

    /// A request that is wrong.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        ApiError { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    /// Something that is not there.
    pub(crate) fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// The status and the body.
    pub(crate) fn parts(self) -> (StatusCode, Value) {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let error = json!({
            "message": self.message, "type": kind, "param": null, "code": self.status.as_u16(),
        });
        (self.status, json!({"error": error}))
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
            Refusal::QueueFull => Self::new(StatusCode::TOO_MANY_REQUESTS, "too many requests wait; try again later"),
            Refusal::ShuttingDown => Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down"),
        }
    }
}
