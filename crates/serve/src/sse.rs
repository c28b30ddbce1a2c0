//! Server-sent events: `data: JSON` for each chunk, then `data: [DONE]`.

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::fmt::Write;
use tokio::sync::mpsc::{Receiver, channel};

/// Chunks that wait for a slow reader. The events before them wait in the channel of the request.
const WAITING: usize = 16;

/// The chunks of a response.
pub(crate) trait Chunks: Send + 'static {
    /// The next chunks; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Option<Vec<Value>>> + Send;

    /// A chunk after all others.
    fn last(&mut self) -> Option<Value>;
}

/// A response that sends chunks as they come. When the client hangs up, the chunks are dropped, which cancels what
/// makes them.
pub(crate) fn response(mut chunks: impl Chunks) -> Response {
    let (sender, receiver) = channel::<String>(WAITING);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = chunks.next() => next,
                () = sender.closed() => return,
            };
            let Some(values) = next else { break };
            let mut text = String::new();
            for value in values {
                // writing to a string cannot fail
                let _ = write!(text, "data: {value}\n\n");
            }
            if !text.is_empty() && sender.send(text).await.is_err() {
                return;
            }
        }
        let usage = chunks.last().map_or_else(String::new, |value| format!("data: {value}\n\n"));
        let _ = sender.send(format!("{usage}data: [DONE]\n\n")).await;
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(Texts(receiver))).into_response()
}

/// The texts of a channel as a stream.
struct Texts(Receiver<String>);

impl futures_core::Stream for Texts {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|text| text.map(|text| Ok(Bytes::from(text))))
    }
}
